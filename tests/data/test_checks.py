"""What enters as rows and labels: one line for each thing that it cannot be, and scales that fit the rows."""

import logging

import numpy as np
import pytest

from fedjax8.build import build
from fedjax8.config import base_config, component
from fedjax8.data.checks import extremes, finite
from fedjax8.data.federated import Dataset, federate
from fedjax8.data.partitions.iid import iid
from fedjax8.data.sources._build import channel_stats
from fedjax8.data.sources.mapped import mapped
from fedjax8.data.sources.npz import npz
from fedjax8.data.storage import save_clients
from fedjax8.errors import UserError

RNG = np.random.default_rng(1)


def save(folder, **changes):
    arrays = {"x_train": RNG.standard_normal((12, 3)), "y_train": np.arange(12) % 3}
    arrays |= {"x_test": RNG.standard_normal((6, 3)), "y_test": np.arange(6) % 3}
    np.savez(folder / "set.npz", **arrays | changes)
    return str(folder)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"y_train": np.eye(3)[np.arange(12) % 3]},
            r"y_train is float64 \(12, 3\); .*; where a row marks its class",
        ),
        ({"y_train": np.arange(12) % 3 / 1.0}, r"y_train is float64 \(12,\).*; try labels.astype\(np.int32\)"),
        ({"y_train": np.arange(12) % 2 > 0}, r"y_train is bool \(12,\).*; try labels.astype\(np.int32\)"),
        ({"y_train": np.array(["a", "b", "c"] * 4)}, r"try np.unique\(labels, return_inverse=True\)\[1\]"),
        ({"x_train": np.ones((12, 3), bool)}, r"x_train is bool \(12, 3\); .*try .astype\(np.float32\)"),
        ({"x_train": np.ones((12, 0))}, r"x_train has rows of shape \(0,\), without any values"),
        ({"x_test": np.full((6, 3), np.nan)}, "test: row 0 of 'x' holds NaN or an infinity"),
        ({"x_test": np.full((6, 3), 1e300)}, "test: row 0 of 'x' holds NaN or an infinity"),
        ({"x_test": np.ones((6, 3), np.uint8)}, "train rows are float32 but test rows uint8"),
        ({"x_train": np.ones((12, 3)) * np.inf}, "NaN, infinities"),
    ],
)
def test_arrays_of_another_kind_are_refused_with_what_to_try(changes, says, tmp_path):
    with pytest.raises(UserError, match=says) as raised:
        npz(save(tmp_path, **changes), "set")
    assert str(raised.value).startswith(f"{tmp_path / 'set.npz'}: ") and "\n" not in str(raised.value)


def test_arrays_of_another_byte_order_and_labels_in_a_column_are_what_they_say(tmp_path):
    x, y = RNG.standard_normal((12, 3)), np.arange(12) % 3
    dataset = npz(save(tmp_path, x_train=x.astype(">f8"), y_train=y[:, None].astype(">i2")), "set")
    np.testing.assert_array_equal(dataset.train["x"], x.astype(np.float32))
    np.testing.assert_array_equal(dataset.train["y"], y)
    assert all(column.dtype.isnative for column in dataset.train.values())


@pytest.mark.parametrize(("labels", "refused"), [((10, 2000, 1_000_000), True), ((0, 3, 6), False), ((1, 2, 3), False)])
def test_labels_with_gaps_are_refused_or_said_with_how_to_number_them_anew(labels, refused, tmp_path, caplog):
    y = np.array(labels)
    folder = save(tmp_path, y_train=y[np.arange(12) % 3], y_test=y[np.arange(6) % 3])
    said = rf"labels run up to {max(labels)}, but only 3 of these {max(labels) + 1} classes occur; number them anew .*"
    said += r"np.unique\(labels, return_inverse=True\).*, or give num_classes"
    if refused:
        with pytest.raises(UserError, match=said):
            npz(folder, "set")
    else:
        with caplog.at_level(logging.WARNING):
            assert npz(folder, "set").num_classes == max(labels) + 1
        assert len(caplog.records) == 1
        caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert npz(folder, "set", num_classes=2_000_000).num_classes == 2_000_000  # the user knows
    assert not caplog.records


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"x": [[1.0]], "y": np.zeros(1, np.int32)}}, r"column 'x' is a list of 1; .*np.asarray\(x\)"),
        ({"train": {"x": np.ones((2, 3), ">f4"), "y": np.zeros(2, np.int32)}}, "the byte order of another machine"),
        ({"test": {"x": np.full((2, 3), np.nan), "y": np.zeros(2, np.int32)}}, "test: row 0 of 'x' holds NaN"),
        ({"train": {"x": np.ones((2, 3)), "y": np.array([0, -1], np.int32)}}, "labels run from -1 to 0; 2 classes"),
        ({"train": {"x": np.ones((2, 3)), "y": np.array([0, 2], np.int32)}}, "labels run from 0 to 2; 2 classes"),
        ({"train": {"x": np.ones((2, 3)), "y": np.zeros((2, 1), np.int32)}}, r"try labels\[:, 0\]"),
        ({"std": (np.nan,)}, "std above 0"),
        ({"mean": (np.nan,)}, "must be finite numbers"),
        ({"owners": [0, 1]}, "train owners are a list of 2"),
    ],
)
def test_data_sets_made_by_hand_are_checked_when_they_are_split(changes, says):
    columns = {"x": np.ones((2, 3)), "y": np.zeros(2, np.int32)}
    whole = Dataset(columns, columns, 2, (0.0,), (1.0,), "made")
    assert federate(whole, iid(), 2).num_examples == 2
    with pytest.raises(UserError, match=says):
        federate(whole._replace(**changes), iid(), 2)


def test_finite_and_extremes_look_at_every_block(monkeypatch):
    monkeypatch.setattr("fedjax8.data.checks._VALUES_AT_ONCE", 8)
    x = RNG.standard_normal((50, 3)).astype(np.float32)
    assert finite(x) and finite(x[::2]) and finite(np.full((9, 2), 3e38, np.float32)) and finite(x[:0])
    assert extremes(x) == (x.min().item(), x.max().item()) and extremes(x[:0]) == (0, -1)
    for row, value in ((0, np.nan), (49, np.inf), (31, -np.inf)):
        y = x.copy()
        y[row, 2] = value
        assert not finite(y) and not finite(np.asfortranarray(y))


# Scales


SCALES = np.array([1.0, 1e6, 1e-3])


def table(rows):
    """Four classes that only all columns together tell apart, and a large mean beside."""
    y = np.arange(rows) % 4
    centers = np.array([[1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]]) * 2.5
    return ((centers[y] + RNG.standard_normal((rows, 3)) + 3.0) * SCALES).astype(np.float32), y


def config_of(name="set", **data):
    config = base_config()
    config.data = component("npz", file=name, **data)
    config.partition, config.model, config.adapter = component("iid"), component("logistic"), component("none")
    config.uplink, config.downlink = component("none"), component("none")
    config.num_clients = config.cohort_size = 2
    return config


def accuracy_after(config, folder, rounds):
    experiment = build(config, folder)
    run = experiment.simulation
    state = run.init()
    state, _ = run.run_rounds(state, rounds)
    return run.evaluate(state, experiment.dataset.test)["test_accuracy"]


def test_columns_of_different_scales_are_learned_alike(tmp_path):
    (x, y), (test_x, test_y) = table(400), table(200)
    folder = save(tmp_path, x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    dataset = npz(folder, "set")
    np.testing.assert_allclose(dataset.mean, x.astype(np.float64).mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(dataset.std, x.astype(np.float64).std(axis=0), rtol=1e-9)
    config = config_of()
    config.client.optimizer = component("sgd", learning_rate=0.1)
    # The nearest center errs in about three of a hundred rows.
    assert accuracy_after(config, folder, 20) > 0.95


@pytest.mark.parametrize(
    ("shape", "dtype", "standardize", "axes"),
    [
        ((9, 3), np.float32, "auto", 0),
        ((9, 3), np.uint8, "auto", (0, 1)),  # pixels side by side
        ((9, 2, 3), np.float32, "auto", (0, 1, 2)),
        ((9, 2, 2, 3), np.float32, "auto", (0, 1, 2)),
        ((9, 3), np.float32, "whole", (0, 1)),
        ((9, 2, 2, 3), np.uint8, "whole", (0, 1, 2, 3)),
        ((9, 2, 3), np.float32, "column", (0, 1)),
        ((9, 3), np.float32, "none", None),
    ],
)
def test_what_is_scaled_by_what(shape, dtype, standardize, axes, tmp_path):
    x = RNG.integers(0, 200, shape).astype(dtype)
    folder = save(tmp_path, x_train=x, x_test=x, y_train=np.arange(9) % 3, y_test=np.arange(9) % 3)
    dataset, scaled = npz(folder, "set", standardize=standardize), x / np.float64(255 if dtype == np.uint8 else 1)
    if axes is None:
        assert (dataset.mean, dataset.std) == ((0.0,), (1.0,))
    else:
        np.testing.assert_allclose(dataset.mean, np.atleast_1d(scaled.mean(axis=axes)), rtol=1e-9)
        np.testing.assert_allclose(dataset.std, np.atleast_1d(scaled.std(axis=axes)), rtol=1e-9)
    with pytest.raises(ValueError, match="standardize is 'rows'; allowed are auto, column, whole, none"):
        npz(folder, "set", standardize="rows")


def test_mapped_tables_are_scaled_by_column_too_and_measured_anew_for_another_way(tmp_path):
    x, y = table(40)
    for part in ("train", "test"):
        save_clients([{"x": x, "y": y.astype(np.int32)}], tmp_path / "set" / part)
    np.testing.assert_allclose(mapped(str(tmp_path), "set").mean, x.astype(np.float64).mean(axis=0), rtol=1e-9)
    assert len(mapped(str(tmp_path), "set", standardize="whole").mean) == 1
    assert len(mapped(str(tmp_path), "set").mean) == 3


def test_deviations_that_float32_cannot_hold_are_one():
    x = np.zeros((10, 2))
    x[0] = 1e-310, 1e-20
    _, std = channel_stats(x, by_column=True)
    assert std == (1.0, pytest.approx(0.3 * 1e-20))  # of one value in ten: sqrt(0.1 * 0.9)
    assert all(np.isfinite(1 / np.float32(value)) for value in std)


def test_pixels_that_are_not_uint8_are_refused_by_name(tmp_path):
    x, y = RNG.integers(0, 256, (12, 4)), np.arange(12) % 3
    folder = save(tmp_path, x_train=x, x_test=x[:6], y_train=y, y_test=y[:6])
    with pytest.raises(UserError, match=r"config.model multiplies the int32 values of x in set, .*pixels as uint8"):
        build(config_of(), folder)
    folder = save(tmp_path, x_train=x.astype(np.uint8), x_test=x[:6].astype(np.uint8), y_train=y, y_test=y[:6])
    assert build(config_of(), folder).dataset.std[0] > 0.2
