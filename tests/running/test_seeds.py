"""Means over the seeds of runs made together, worked out by hand."""

import math

import pytest

from fedjax8.running.seeds import over_seeds, seeds_in_words

SUMMARIES = [
    {"rounds": 4, "test_accuracy": 0.5, "test_loss": 1.0, "finished": True, "stopped_by": {"round": 3}},
    {"rounds": 4, "test_accuracy": 0.7, "test_loss": math.nan, "finished": True},
    {"rounds": 4, "test_accuracy": 0.9, "test_loss": 3.0, "finished": False, "test_auc": 0.75},
]


def test_every_number_has_mean_sample_deviation_and_count():
    found = over_seeds([3, 5, 7], SUMMARIES)
    assert found["seeds"] == [3, 5, 7]
    assert found["test_accuracy"] == pytest.approx({"mean": 0.7, "deviation": 0.2, "count": 3})
    assert found["test_loss"] == pytest.approx({"mean": 2.0, "deviation": math.sqrt(2), "count": 2})
    assert found["test_auc"] == {"mean": 0.75, "deviation": None, "count": 1}
    assert "finished" not in found and "stopped_by" not in found


def test_the_line_is_of_the_runs_own_metric():
    found = over_seeds([3, 5, 7], SUMMARIES)
    assert seeds_in_words(found) == (
        "mean over 3 seeds: test accuracy 0.7000 (deviation 0.2000), test loss 2.0000 (deviation 1.4142, of 2 of them)"
    )
    assert seeds_in_words(found, "auc").startswith("mean over 3 seeds: test AUC 0.7500 (of 1 of them), test loss")
    assert seeds_in_words(over_seeds([0, 1], [{}, {}])) == "mean over 2 seeds: nothing was evaluated"
    lost = over_seeds(
        [0, 1], [{"test_accuracy": 0.5, "test_loss": math.nan}, {"test_accuracy": 0.5, "test_loss": None}]
    )
    assert lost["test_loss"] == {"mean": None, "deviation": None, "count": 0}
    assert (
        seeds_in_words(lost)
        == "mean over 2 seeds: test accuracy 0.5000 (deviation 0.0000), test loss is finite in none of them"
    )
    assert seeds_in_words(found).isascii() and seeds_in_words(found, "r2").isascii()
