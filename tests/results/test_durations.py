"""Durations for people, and the labels of an axis of time."""

import itertools
import math

import pytest

from fedjax8.results.durations import duration_labels, duration_ticks, logarithmic_duration_ticks, readable_duration

MOST = 6


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 s"),
        (0.00123, "0.0012 s"),
        (12.0, "12 s"),
        (59.4, "59 s"),
        (59.96, "1.0 min"),
        (204.0, "3.4 min"),
        (3599.0, "1.0 h"),
        (7560.0, "2.1 h"),
        (36_000.0, "10 h"),
        (86_400.0, "1.0 d"),
        (1e9, "11574 d"),
        (math.inf, "inf s"),
        (math.nan, "nan s"),
    ],
)
def test_a_duration_has_two_digits_in_the_largest_unit_in_which_it_is_at_least_one(seconds, text):
    assert readable_duration(seconds) == text


def test_a_deviation_is_shown_in_the_unit_of_the_mean_where_its_digits_are_seen():
    assert readable_duration(5400.0, 360.0, digits=3) == "1.50 ± 0.10 h"
    assert readable_duration(5400.0, 1.0, digits=3) == readable_duration(5400.0, math.nan, digits=3) == "1.50 h"


@pytest.mark.parametrize("high", [0.003, 0.9, 7.0, 59.0, 61.0, 1000.0, 5000.0, 40_000.0, 70_000.0, 2e5, 3e7, 1e9])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_labels_of_a_linear_axis_are_few_evenly_spaced_and_different(high, share):
    low = share * high
    ticks = duration_ticks(low, high, MOST)
    assert 2 <= len(ticks) <= MOST
    assert low - 1e-6 * high <= ticks[0] and ticks[-1] <= high * (1 + 1e-6)
    distances = [b - a for a, b in itertools.pairwise(ticks)]
    assert max(distances) == pytest.approx(min(distances), rel=1e-6)
    labels = duration_labels(ticks)
    assert len(set(labels)) == len(labels) and max(map(len, labels)) <= 12
    units = {"s": 1, "min": 60, "h": 3600, "d": 86_400}
    read = [float(number) * units[unit] for number, unit in (label.split() for label in labels if label != "0")]
    assert read == pytest.approx([tick for tick in ticks if tick], rel=1e-4)


@pytest.mark.parametrize(("low", "high"), [(1.0, 60.0), (0.01, 1e6), (7.0, 9e4), (86_400.0, 1e9)])
def test_labels_of_a_logarithmic_axis_are_few_and_within_it(low, high):
    ticks = logarithmic_duration_ticks(low, high, MOST)
    assert 3 <= len(ticks) <= MOST and ticks == sorted(ticks)
    assert low <= ticks[0] and ticks[-1] <= high


def test_an_axis_of_no_length_has_one_label():
    assert duration_ticks(5.0, 5.0, MOST) == [5.0] and duration_labels([5.0]) == ["5 s"]
