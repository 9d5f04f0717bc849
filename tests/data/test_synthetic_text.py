"""Made-up text: sizes of its clients, and that it is the chain that it says it is."""

import numpy as np
import pytest

from fedjax8.data.federated import federate
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources.synthetic_text import synthetic_text


@pytest.fixture(scope="module")
def dataset():
    return synthetic_text()


def test_clients_are_many_and_very_unequal(dataset):
    sizes = federate(dataset, by_key(), dataset.num_natural_clients).sizes
    logs = np.log(sizes)
    # 715 draws: standard errors 1 / sqrt(715) = 0.037 of the mean of logs, 0.026 of their deviation; four of each.
    assert len(sizes) == 715 and sizes.min() >= 1
    assert logs.mean() == pytest.approx(np.log(32), abs=0.15) and logs.std() == pytest.approx(1.0, abs=0.11)
    assert set(dataset.test_owners.tolist()) <= set(range(715)) and len(dataset.test_owners) == 4000


def test_targets_are_the_inputs_one_symbol_later(dataset):
    for part in (dataset.train, dataset.test):
        assert part["x"].shape[1:] == (80,) and part["x"].min() == 0 and part["x"].max() == 89
        np.testing.assert_array_equal(part["x"][:, 1:], part["y"][:, :-1])
        assert part["y"].min() >= 0


def best_guess_accuracy(train, test, num_contexts):
    """On `test`, of the guess that was the most frequent in `train` after the same context."""
    (context, symbol), (test_context, test_symbol) = train, test
    counts = np.zeros((num_contexts, 1 + max(symbol.max(), test_symbol.max())), int)
    np.add.at(counts, (context, symbol), 1)
    return (counts.argmax(axis=1)[test_context] == test_symbol).mean(), counts


def test_one_symbol_tells_the_likeliest_next_and_two_tell_which_others_are_possible():
    dataset = synthetic_text(50, 20, median=100.0, num_test=500)
    parts = []
    for part in (dataset.train, dataset.test):
        x, y = part["x"], part["y"]
        parts.append((x[:, 1:].ravel(), (20 * x[:, :-1] + x[:, 1:]).ravel(), y[:, 1:].ravel()))
    (one, two, symbol), (test_one, test_two, test_symbol) = parts
    # P(1) = (1/2) / (1 - 2**-8) = 0.502; 500 * 79 symbols, standard error 0.0025, four of them.
    for contexts, size in (((one, test_one), 20), ((two, test_two), 400)):
        accuracy, counts = best_guess_accuracy((contexts[0], symbol), (contexts[1], test_symbol), size)
        assert accuracy == pytest.approx(0.502, abs=0.01)
    assert ((counts > 0).sum(axis=1) <= 8).all()
    assert set(range(20)) == set(counts.argmax(axis=1).tolist())


def test_text_depends_on_the_seed_alone():
    settings = {"num_clients": 5, "vocabulary": 10, "sequence_length": 6, "num_test": 4}
    first, again, other = synthetic_text(**settings), synthetic_text(**settings), synthetic_text(**settings, seed=1)
    np.testing.assert_array_equal(first.train["x"], again.train["x"])
    assert first.train["x"].shape != other.train["x"].shape


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_clients": 0}, "num_clients is 0; it must be finite and at least 1"),
        ({"vocabulary": 7}, "vocabulary is 7; it must be finite and at least 8"),
        ({"sequence_length": 1}, "sequence_length is 1"),
        ({"median": 0.5}, "median is 0.5"),
        ({"sigma": -1.0}, "sigma is -1.0"),
        ({"sigma": float("inf")}, "sigma is inf"),
        ({"num_test": 0}, "num_test is 0"),
    ],
)
def test_bad_hyperparameters_are_named(settings, says):
    with pytest.raises(ValueError, match=says):
        synthetic_text(**settings)
