"""Sources that need no files: digits, Gaussian blobs and any number of clients over one pool."""

import time

import numpy as np
import pytest

from fedjax8.data.sources.digits import digits
from fedjax8.data.sources.synthetic import synthetic, synthetic_clients
from fedjax8.errors import UserError


def test_digits_are_all_there_in_levels_of_a_sixteenth():
    dataset = digits()
    x = np.concatenate([dataset.train["x"], dataset.test["x"]])
    assert x.shape == (1797, 8, 8, 1) and x.dtype == np.uint8
    # 255 v / 16 to the nearest integer, by hand for v = 0, 1, 2, 8, 16.
    assert {0, 16, 32, 128, 255} <= set(np.unique(x).tolist()) and len(np.unique(x)) == 17


def test_digits_are_split_within_each_class_and_by_seed_alone():
    dataset, again, other = digits(), digits(), digits(seed=1)
    totals = np.bincount(np.concatenate([dataset.train["y"], dataset.test["y"]]))
    np.testing.assert_array_equal(np.bincount(dataset.test["y"]), np.rint(0.2 * totals))
    np.testing.assert_array_equal(dataset.test["x"], again.test["x"])
    assert not np.array_equal(dataset.test["x"], other.test["x"])
    rows = np.concatenate([dataset.train["x"], dataset.test["x"]]).reshape(1797, -1)
    other_rows = np.concatenate([other.train["x"], other.test["x"]]).reshape(1797, -1)
    np.testing.assert_array_equal(np.sort(rows.view("V64"), axis=0), np.sort(other_rows.view("V64"), axis=0))


def nearest_center_accuracy(dataset):
    """Of the classifier that knows the class means of the training rows."""
    train, test = (part["x"].reshape(len(part["x"]), -1).astype(np.float64) for part in dataset[:2])
    centers = np.stack([train[dataset.train["y"] == c].mean(axis=0) for c in range(dataset.num_classes)])
    distances = ((test[:, None] - centers) ** 2).sum(axis=2)
    return (distances.argmin(axis=1) == dataset.test["y"]).mean()


def test_synthetic_classes_can_be_told_apart_as_far_as_they_are_separated():
    settings = {"shape": (8, 8, 1), "num_classes": 4, "num_examples": 4000, "num_test": 2000}
    assert nearest_center_accuracy(synthetic(**settings, separation=8.0)) > 0.99
    # No separation: one class in four; standard error sqrt(0.25 * 0.75 / 2000) = 0.01, four of them allowed.
    assert abs(nearest_center_accuracy(synthetic(**settings, separation=0.0)) - 0.25) < 4 * 0.01


def test_synthetic_noise_has_the_stated_deviation_around_centers_of_the_stated_norm():
    dataset = synthetic((40,), 2, num_examples=20_000, num_test=1, separation=6.0)
    x, y = dataset.train["x"].astype(np.float64), dataset.train["y"]
    centers = np.stack([x[y == c].mean(axis=0) for c in (0, 1)])
    # 10,000 rows a class: a mean is good to 40 / sqrt(10000) = 0.4 gray levels; clipping at 3.2 deviations
    # takes a little more from pixels off the middle.
    assert np.linalg.norm((centers - 128) / 40, axis=1) == pytest.approx([6.0, 6.0], rel=0.05)
    middle = np.abs(centers[0] - 128) < 20
    assert x[y == 0][:, middle].std(axis=0) == pytest.approx(40, rel=0.03)


def test_synthetic_data_depend_on_the_seed_alone_and_classes_are_equally_frequent():
    settings = {"shape": (6, 5), "num_classes": 3, "num_examples": 100, "num_test": 10}
    first, again, other = synthetic(**settings), synthetic(**settings), synthetic(**settings, seed=1)
    np.testing.assert_array_equal(first.train["x"], again.train["x"])
    assert not np.array_equal(first.train["x"], other.train["x"])
    assert sorted(np.bincount(first.train["y"]).tolist()) == [33, 33, 34]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: synthetic(shape=()), r"shape is \(\)"),
        (lambda: synthetic(num_classes=0), "num_classes is 0"),
        (lambda: synthetic(num_test=0), "num_test is 0"),
        (lambda: synthetic(separation=-1.0), "separation is -1.0"),
        (lambda: digits(test_fraction=1.0), "test_fraction is 1.0"),
    ],
)
def test_bad_hyperparameters_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


POOL = {"x": np.arange(500), "y": (np.arange(500) % 5).astype(np.int32)}


def test_synthetic_clients_are_windows_of_the_asked_sizes_over_distinct_rows():
    data = synthetic_clients(POOL, 3000, sizes=(2, 9))
    assert data.num_clients == 3000 and set(data.sizes.tolist()) == set(range(2, 10))
    assert sorted(data.order.tolist()) == list(range(500))
    assert all(len(set(data.rows(c).tolist())) == data.sizes[c] for c in range(100))
    used = np.unique(np.concatenate([data.rows(c) for c in range(3000)]))
    assert len(used) == 500  # 3000 windows of 5.5 rows on average leave no row of 500 out
    again, other = (
        synthetic_clients(POOL, 3000, sizes=(2, 9)),
        synthetic_clients(POOL, 3000, sizes=(2, 9), seed=1),
    )
    np.testing.assert_array_equal(data.starts, again.starts)
    assert not np.array_equal(data.starts, other.starts)


def test_synthetic_clients_by_label_see_neighboring_classes_only():
    counts = synthetic_clients(POOL, 200, sizes=(10, 50), by_label=True).label_counts(5)
    assert ((counts > 0).sum(axis=1) <= 2).all()
    mixed = synthetic_clients(POOL, 200, sizes=(50, 50)).label_counts(5)
    assert ((mixed > 0).sum(axis=1) >= 4).all()


def test_synthetic_clients_may_be_as_large_as_the_pool():
    data = synthetic_clients(POOL, 3, sizes=(500, 500))
    assert sorted(data.rows(2).tolist()) == list(range(500))


def test_a_million_synthetic_clients_take_a_moment_and_twelve_bytes_each():
    begun = time.perf_counter()
    data = synthetic_clients(POOL, 1_000_000)
    assert time.perf_counter() - begun < 1.0
    assert data.starts.nbytes + data.sizes.nbytes == 12_000_000
    assert data.columns is POOL and data.order.nbytes == 4 * 500


@pytest.mark.parametrize(
    ("num_clients", "sizes", "says"),
    [
        (0, (1, 2), "num_clients is 0"),
        (5, (0, 2), "0 to 2"),
        (5, (3, 2), "3 to 2"),
        (5, (1, 501), "500 rows"),
    ],
)
def test_impossible_synthetic_clients_are_named(num_clients, sizes, says):
    with pytest.raises(UserError, match=says):
        synthetic_clients(POOL, num_clients, sizes=sizes)
