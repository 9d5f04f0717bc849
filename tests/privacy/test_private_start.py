"""What of a run depends on a training row before any noise: nothing, where an epsilon is stated."""

import json

import jax
import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.build import build
from fedjax8.codecs.none import none
from fedjax8.config import base_config, component, override, plain
from fedjax8.data import drawn
from fedjax8.data.batches import batch_plan
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.introduction import introduction
from fedjax8.launch import run_of
from fedjax8.local import local_training
from fedjax8.types import Variables

PRIVATE = {
    "dp_sgd": (("privacy.name", "dp_sgd"), ("privacy.noise_multiplier", "1.0")),
    "dp_fedavg": (("algorithm.name", "dp_fedavg"), ("algorithm.noise_multiplier", "1.0")),
}
ROWS = 60


def write(folder, kind, extreme):
    """A set of images, or of float rows, of which `extreme` changes one row and its label."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, 6, 6, 1)), np.arange(ROWS) % 3
    x = np.uint8(np.clip(100 + 40 * x, 0, 254)) if kind == "uint8" else np.float32(x)
    x_test, y_test = x[:9].copy(), y[:9].copy()
    if extreme:
        x[17], y[17] = (255, 0) if kind == "uint8" else (-1e10, 0)
    np.savez(folder / "rows.npz", x_train=x, y_train=y, x_test=x_test, y_test=y_test)


def built(folder, kind, extreme, *settings, num_classes=3):
    write(folder, kind, extreme)
    config = base_config()
    config.data = component("npz", file="rows", num_classes=num_classes)
    config.partition, config.num_clients, config.cohort_size, config.rounds = component("iid"), 5, 5, 3
    config.model = component("mlp", hidden=(8,))
    constants = (("input_mean", "0.1"), ("input_std", "0.9")) if kind == "float32" else ()
    override(config, (*constants, *settings))
    return build(config, str(folder))


def before_training(experiment):
    """Everything that a client or a reader of the run's files sees before the first round."""
    state = experiment.simulation.init()
    model = jax.tree.map(np.asarray, experiment.simulation.variables(state)._asdict())
    lines = introduction(experiment, state), json.dumps(run_of(experiment).about(), sort_keys=True)
    return model, (*lines, json.dumps(plain(experiment.config), sort_keys=True), state.ledger)


def same(a, b):
    return all(np.array_equal(p, q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize(("name", "kind"), [("dp_sgd", "float32"), ("dp_fedavg", "uint8")])
def test_nothing_before_training_depends_on_an_example(tmp_path, name, kind):
    (model, lines), (changed, others) = (
        before_training(built(tmp_path, kind, extreme, *PRIVATE[name])) for extreme in (False, True)
    )
    assert "input_clip" in model["params"]["Dense_0"]
    assert same(model, changed) and lines == others
    assert "rows are private" in lines[0]


def test_without_privacy_the_clips_and_labels_are_those_of_the_rows(tmp_path):
    """Which is what the test above would miss if it looked at the wrong things."""
    (model, lines), (changed, others) = (before_training(built(tmp_path, "float32", e)) for e in (False, True))
    clips = [float(m["params"]["Dense_0"]["input_clip"]) for m in (model, changed)]
    assert clips[0] < 6 and clips[1] == pytest.approx(1.111e10, rel=1e-3)
    assert lines[1] != others[1] and "rows are private" not in lines[0]


def test_images_are_normalized_by_the_middle_of_their_range(tmp_path):
    """Rows that are drawn are then unit normal, cut off at two deviations by the range of uint8."""
    experiment = built(tmp_path, "uint8", False, *PRIVATE["dp_sgd"])
    clip = experiment.simulation.variables(experiment.simulation.init()).params["Dense_0"]["input_clip"]
    assert float(clip) == pytest.approx(2.0, rel=1e-6)


def test_what_is_measured_on_private_rows_is_refused(tmp_path):
    settings = (*PRIVATE["dp_sgd"], ("input_mean", "()"), ("input_std", "()"))
    with pytest.raises(UserError, match=r"--config\.input_mean=0\.0"):
        built(tmp_path, "float32", False, *settings)
    with pytest.raises(UserError, match=r"--config\.data\.num_classes=3"):
        built(tmp_path, "uint8", False, *PRIVATE["dp_fedavg"], num_classes=None)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ("0.5", "()", "give both"),
        ("0.5", "0.0", "above 0"),
        ("(0.1, 0.2)", "(1.0, 1.0)", "one number each or as 1"),
        ("x", "1.0", "config.input_mean"),
    ],
)
def test_constants_that_do_not_fit_are_one_sentence(tmp_path, mean, std, message):
    with pytest.raises(UserError, match=message):
        built(tmp_path, "uint8", False, ("input_mean", mean), ("input_std", std))


def test_constants_take_the_place_of_what_is_measured(tmp_path):
    """Rows up to 254 / 255 less 0.5 over 0.1."""
    experiment = built(tmp_path, "uint8", False, ("input_mean", "0.5"), ("input_std", "0.1"))
    clip = experiment.simulation.variables(experiment.simulation.init()).params["Dense_0"]["input_clip"]
    largest = np.abs(experiment.dataset.train["x"] / 255 - 0.5).max() / 0.1
    assert float(clip) == pytest.approx(largest, rel=1e-5)


def test_symbols_have_no_constants():
    config = base_config()
    config.data, config.partition = component("synthetic_text", num_clients=5, median=2), component("by_key")
    config.model, config.num_clients, config.cohort_size = component("char_lstm"), 0, 2
    override(config, [("input_mean", "0.5"), ("input_std", "0.5")])
    with pytest.raises(UserError, match="symbols"):
        build(config)


def test_rows_are_drawn_from_shapes_and_constants_alone():
    columns = {
        "x": np.zeros((0, 500, 2), np.float32),
        "pixels": np.zeros((0, 900), np.uint8),
        "y": np.zeros((0, 7), np.int32),
    }
    found = drawn.drawn_rows(columns, 40, mean=(3.0, -1.0), std=(0.5, 2.0), num_classes=4)
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: ((40, *x.shape[1:]), x.dtype) for name, x in columns.items()
    }
    # 20 000 values a channel: the standard error of a mean is 0.0071 of the deviation.
    np.testing.assert_allclose(found["x"].mean((0, 1)), (3.0, -1.0), atol=0.06)
    np.testing.assert_allclose(found["x"].std((0, 1)), (0.5, 2.0), rtol=0.03)
    assert found["pixels"].mean() == pytest.approx(127.5, abs=2) and set(found["y"].ravel()) == {0, 1, 2, 3}


def test_a_simulation_that_states_an_epsilon_does_not_look_at_rows(toys):
    """Made in Python, without `build`: a model that starts at the largest b of the rows it is given."""
    model = toys.quadratic()._replace(init=lambda key, batch: Variables({"x": abs(batch["b"]).max()}, {}))
    algorithm = fedavg(local_training(model, optax.sgd(0.1), batch_plan(1, steps=1)))
    settings = {"cohort_size": 2, "uplink": none(), "downlink": none(), "executor": loop()}

    def start(privacy, **sample):
        rows = toys.clients([1.0, 1.0], [0.5, 1e6])
        sim = simulate(algorithm._replace(privacy=privacy), rows, **settings, **sample)
        return float(sim.variables(sim.init()).params["x"])

    assert start(lambda rounds: {}) == 1e6
    assert start(lambda rounds: {"epsilon": 1.0, "delta": 1e-5}) < 6
    assert start(lambda rounds: {}, sample={"a": np.ones(2, np.float32), "b": np.float32([3, -4])}) == 4
