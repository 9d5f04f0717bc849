"""Rules of thumb for Theta: the published points, the time model by hand, and the limits of the rule between them."""

import doctest
import math

import pytest

from fedjax8.algorithms import thresholds
from fedjax8.algorithms.thresholds import guideline, synchronization_seconds, tradeoff

PARAMS = (61_706, 2_592_202, 6_964_106, 18_112_138)
CHOSEN = {"fl": (5, 100, 325, 900), "balanced": (1.5, 50, 300, 700), "hpc": (0.5, 20, 200, 500)}


@pytest.mark.parametrize("setting", CHOSEN)
def test_slopes_are_the_least_squares_lines_through_the_published_points(setting):
    slope = sum(d * t for d, t in zip(PARAMS, CHOSEN[setting], strict=True)) / sum(d * d for d in PARAMS)
    assert guideline(1_000_000, setting) == pytest.approx(slope * 1e6, abs=0.005e-5 * 1e6)  # as printed: 3 digits


def test_the_guideline_misses_fine_tuning_by_the_factor_that_the_docstring_warns_of():
    low, high = (guideline(197_068_580, s) for s in ("hpc", "fl"))
    assert (round(low, -2), round(high, -2)) == (5400, 9700)


def test_seconds_to_synchronize_by_hand():
    """A million parameters, 4 million bytes or 32 Mbit each way, at 1 Mbit/s: 64 s a worker, less its own share."""
    seconds = lambda k, topology: synchronization_seconds(1_000_000, k, 1e6, topology)
    assert [seconds(5, t) for t in ("shared", "ring", "hypercube")] == pytest.approx([64 * 4, 64 * 4 / 5, 64 * 3])
    assert [seconds(k, "hypercube") / 64 for k in (1, 2, 4, 8, 9)] == [0, 1, 2, 3, 4]
    assert seconds(1, "shared") == seconds(1, "ring") == 0


def test_tradeoff_meets_the_published_slopes_at_their_ratios():
    """One second to synchronize (a shared channel between two workers) and steps of 1 / ratio seconds."""
    at = lambda ratio: tradeoff(1_000_000, 2, 64e6, 1 / ratio) / 1_000_000
    low, high = 0.4148, 269.47  # by hand from the A10 step times, 30 workers
    assert at(high) == pytest.approx(4.91e-5, rel=1e-4)
    assert at(low) == pytest.approx(2.74e-5, rel=1e-4)
    assert at(math.sqrt(low * high)) == pytest.approx(3.89e-5, rel=1e-4)
    assert at(1000) == pytest.approx(4.91e-5, rel=1e-12)
    assert at(0.01) == pytest.approx(2.74e-5, rel=1e-12)
    slopes = [at(r) for r in (0.5, 1, 5, 10, 20, 100, 260)]
    assert slopes == sorted(set(slopes))


def test_the_ratios_are_those_of_the_time_model():
    steps = (6.613e-3, 8.853e-3, 87.328e-3, 142.0896e-3)
    mean = lambda per_param: math.exp(sum(math.log(per_param * d / s) for d, s in zip(PARAMS, steps, strict=True)) / 4)
    assert thresholds._typical_ratio(0.5e9, "shared") == pytest.approx(mean(29 * 64 / 0.5e9), rel=1e-9)
    assert thresholds._typical_ratio(56e9, "hypercube") == pytest.approx(mean(5 * 64 / 56e9), rel=1e-9)


def test_one_worker_gets_the_lowest_slope_and_slower_networks_a_larger_threshold():
    assert tradeoff(1000, 1, 1e6, 0.1) == pytest.approx(guideline(1000, "hpc"))
    assert tradeoff(10**6, 8, 1e8, 0.1) > tradeoff(10**6, 8, 1e9, 0.1) > tradeoff(10**6, 8, 1e9, 0.1, "ring")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: guideline(10, "lan"), "fl, balanced, hpc; got 'lan'"),
        (lambda: guideline(0), "num_params must be at least 1; got 0"),
        (lambda: tradeoff(10, 0, 1e9, 0.1), "workers >= 1.*10, 0"),
        (lambda: tradeoff(10, 2, 0, 0.1), "bandwidth_bits_per_second > 0.*10, 2, 0"),
        (lambda: tradeoff(10, 2, 1e9, 0), "step_seconds.*got 0"),
        (lambda: tradeoff(10, 2, 1e9, 0.1, "star"), "shared, ring, hypercube; got 'star'"),
    ],
)
def test_bad_settings_are_named_with_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_docstring_examples_print_what_they_say():
    result = doctest.testmod(thresholds)
    assert (result.failed, result.attempted) == (0, 2)
