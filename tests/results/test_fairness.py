"""Measures of how evenly clients are served, by hand."""

import pytest

from fedjax8.results.fairness import in_words, jain_index, spread, worst_tenth


def test_jains_index_is_one_for_equals_and_one_over_n_for_a_single_winner():
    assert jain_index([0.3] * 7) == pytest.approx(1.0)
    assert jain_index([0, 0, 0, 1.0]) == pytest.approx(1 / 4)
    assert jain_index([1.0, 2.0]) == pytest.approx(9 / 10)
    assert jain_index([0.0, 0.0]) == 1.0  # equal, if badly


@pytest.mark.parametrize(("count", "expected"), [(1, 0.0), (10, 0.0), (11, 0.5), (20, 0.5), (21, 1.0)])
def test_the_worst_tenth_is_the_mean_of_a_tenth_rounded_up(count, expected):
    """Of values 0, 1, 2, ... in any order."""
    assert worst_tenth([float(v) for v in reversed(range(count))]) == expected


def test_spread_has_mean_deviation_worst_tenth_and_fairness():
    found = spread([0.2, 0.4])
    assert found == pytest.approx({"accuracy": 0.3, "deviation": 0.1, "worst_tenth": 0.2, "fairness": 0.36 / 0.4})


def test_in_words_measures_are_means_over_runs():
    text = in_words([{"accuracy": [0.2, 0.4]}, {"accuracy": [1.0]}, {}])
    assert text == "accuracy mean 65.00%, deviation 5.00%, worst tenth 60.00%, fairness 0.9500"
    assert in_words([{}, {"accuracy": []}]) == ""
