import math

import numpy as np
import pytest

from fedjax8.results.curves import Trajectory
from fedjax8.results.gain import Pairing, gain, gain_curve, pair, reach, within
from fedjax8.results.measure import Measure
from fedjax8.results.runs import read_settings


def run(accuracies, bytes_per_round, every=1, seconds=None):
    rounds = every * np.arange(1, len(accuracies) + 1)
    time = None if seconds is None else rounds * float(seconds)
    return Trajectory(rounds, rounds * float(bytes_per_round), np.array(accuracies), time)


FULL = run([0.2, 0.4, 0.6], 100)
EIGHT = run([0.3, 0.5, 0.7], 50)


def test_reach_is_the_first_evaluated_round_at_or_above_the_accuracy():
    dipping = run([0.5, 0.3, 0.6, 0.5], 10, every=2)
    found = reach(dipping, np.array([0.1, 0.5, 0.55, 0.6, 0.7]))
    np.testing.assert_array_equal(found.rounds, [2, 2, 6, 6, np.nan])
    np.testing.assert_array_equal(found.num_bytes, [20, 20, 60, 60, np.nan])
    assert np.isnan(found.seconds).all()
    timed = reach(dipping._replace(seconds=np.array([1.0, 5.0, 6.0, 9.0])), np.array([0.5, 0.6, 0.7]))
    np.testing.assert_array_equal(timed.seconds, [1.0, 6.0, np.nan])


def test_one_pair_is_compared_at_the_lower_of_the_two_best_and_has_no_spread():
    found = gain(Pairing((EIGHT,), (FULL,), True))
    # 0.6: round 3 of both, 300 and 150 bytes
    nan = pytest.approx(math.nan, nan_ok=True)
    assert (found.target, found.rounds, found.num_bytes) == ((0.6, nan, 1), (3.0, nan, 1), (150.0, nan, 1))
    assert (found.reference_rounds.mean, found.reference_bytes.mean) == (3.0, 300.0)
    assert (found.in_rounds, found.in_bytes) == ((1.0, nan, 1), (2.0, nan, 1))
    # at 0.3 full needs round 2, 200 bytes, and eight round 1, 50 bytes
    found = gain(Pairing((EIGHT,), (FULL,), True), target=0.3)
    assert (found.in_rounds.mean, found.in_bytes.mean) == (2.0, 4.0)


def test_pairs_give_a_mean_of_ratios_and_settings_without_pairs_a_ratio_of_means():
    # 0.5 is reached after 200 and 400 bytes by the reference, after 100 and 400 by the setting
    reference = run([0.1, 0.5], 100), run([0.1, 0.1, 0.1, 0.5], 100)
    setting = run([0.5], 100), run([0.1, 0.1, 0.1, 0.5], 100)
    paired = gain(Pairing(setting, reference, True))
    assert paired.in_bytes == (1.5, pytest.approx(1 / math.sqrt(2), rel=1e-12), 2)
    unpaired = gain(Pairing(setting, reference, False))
    assert unpaired.in_bytes[::2] == (1.2, 1) and math.isnan(unpaired.in_bytes.spread)
    assert unpaired.rounds == (2.5, pytest.approx(3 / math.sqrt(2), rel=1e-12), 2)


def test_the_gain_in_time_is_that_of_the_simulated_seconds_of_the_same_rounds():
    """0.5 in rounds 2 and 4 of 10 s by the reference, in rounds 1 and 4 of 5 s by the setting: 20 / 5 and 40 / 20."""
    reference = run([0.1, 0.5], 100, seconds=10), run([0.1, 0.1, 0.1, 0.5], 100, seconds=10)
    setting = run([0.5], 400, seconds=5), run([0.1, 0.1, 0.1, 0.5], 400, seconds=5)
    found = gain(Pairing(setting, reference, True))
    assert (found.seconds.mean, found.reference_seconds.mean) == (12.5, 30.0)
    assert found.in_seconds == (3.0, pytest.approx(math.sqrt(2), rel=1e-12), 2)
    assert found.in_bytes.mean == (200 / 400 + 400 / 1600) / 2
    beyond = gain(Pairing((run([0.3], 1, seconds=1),), (run([0.9], 1, seconds=8),), True))
    assert (beyond.in_seconds, beyond.seconds.mean) == (None, 1.0)


@pytest.mark.parametrize("clocks", [(None, 10), (10, None), (None, None)])
def test_without_a_clock_on_either_side_there_is_no_gain_in_time(clocks):
    found = gain(Pairing((run([0.5], 1, seconds=clocks[0]),), (run([0.5], 2, seconds=clocks[1]),), True))
    assert (found.seconds, found.reference_seconds, found.in_seconds) == (None, None, None)
    assert found.in_bytes.mean == 2.0


def test_the_gain_curve_in_time_is_exact_too():
    # seconds of full 10 20 20 30 30 at 0.2 to 0.6, of eight 40 40 80 80 120
    full, eight = FULL._replace(seconds=np.array([10.0, 20, 30])), EIGHT._replace(seconds=np.array([40.0, 80, 120]))
    found = gain_curve(Pairing((eight,), (full,), True), cost="seconds")
    np.testing.assert_allclose(found.mean, [10 / 40, 20 / 40, 20 / 80, 30 / 80, 30 / 120], rtol=1e-12)
    assert gain_curve(Pairing((eight,), (FULL,), True), cost="seconds") is None


def test_a_run_that_does_not_reach_the_target_leaves_no_gain_paired_or_not():
    for paired in (True, False):
        found = gain(Pairing((EIGHT, FULL), (EIGHT, EIGHT), paired), target=0.7)
        assert (found.compared, found.reached, found.rounds.mean) == (2, 1, 3.0)
        assert (found.in_rounds, found.in_bytes) == (None, None)


def test_without_evaluated_runs_there_is_no_gain_and_no_curve():
    for pairing in (Pairing((), (FULL,), False), Pairing((FULL,), (), False)):
        assert gain(pairing)[1:9] == (0, *[None] * 7)
        assert gain_curve(pairing) is None


def test_the_gain_curve_has_a_point_at_every_accuracy_where_a_run_is_at_its_best_so_far():
    found = gain_curve(Pairing((EIGHT,), (FULL,), True))
    # bytes of full 100 200 200 300 300, of eight 50 50 100 100 150; 0.7 is above the best of full
    np.testing.assert_array_equal(found.x, [0.2, 0.3, 0.4, 0.5, 0.6])
    np.testing.assert_allclose(found.mean, [2.0, 4.0, 2.0, 3.0, 2.0], rtol=1e-12)
    assert np.isnan(found.spread).all()


def test_the_gain_curve_is_the_mean_over_pairs_with_their_deviation():
    # the second pair has a gain of 2 everywhere
    found = gain_curve(Pairing((EIGHT, run([0.2, 0.4, 0.6], 50)), (FULL, FULL), True))
    np.testing.assert_allclose(found.mean, [2.0, 3.0, 2.0, 2.5, 2.0], rtol=1e-12)
    np.testing.assert_allclose(found.spread, [0.0, math.sqrt(2), 0.0, math.sqrt(0.5), 0.0], rtol=1e-12)


def test_the_gain_curve_without_pairs_is_a_ratio_of_means_without_deviation():
    # bytes of the two runs of the setting: 50 50 100 100 150 and 50 100 100 150 150
    found = gain_curve(Pairing((EIGHT, run([0.2, 0.4, 0.6], 50)), (FULL,), False))
    np.testing.assert_allclose(found.mean, [100 / 50, 200 / 75, 200 / 100, 300 / 125, 300 / 150], rtol=1e-12)
    assert np.isnan(found.spread).all()


def test_the_gain_curve_leaves_out_what_is_reached_in_the_evaluations_to_skip():
    # after one evaluation eight is at 0.3
    assert gain_curve(Pairing((EIGHT,), (FULL,), True), skip=1).x.tolist() == [0.4, 0.5, 0.6]
    assert gain_curve(Pairing((EIGHT,), (FULL,), True), skip=3) is None


def test_at_the_highest_accuracy_in_common_curve_and_gain_agree(rng):
    def noisy(num_bytes):
        return run(np.sort(rng.random(30)) + 0.05 * rng.random(30), num_bytes)

    pairing = Pairing((noisy(3),), (noisy(7),), True)
    assert gain_curve(pairing).mean[-1] == gain(pairing).in_bytes.mean


def test_runs_are_paired_by_seed_whatever_their_order_and_unknown_seeds_are_not(tmp_path, write_run, write_folder):
    def setting(*seeds, bits):
        folders = [write_run(tmp_path / f"{bits}-{s}", [0.1 * (s + 1)], seed=s, bits=bits) for s in seeds]
        return read_settings(folders)[0][0]

    def best(runs):
        return [round(float(r.score.max()), 1) for r in runs]

    first, second, third = setting(0, 1, 2, bits=8), setting(3, 2, 1, bits=4), setting(5, bits=2)
    found = pair(second, first)
    assert (best(found.setting), best(found.reference), found.paired) == ([0.3, 0.2], [0.3, 0.2], True)
    assert pair(third, first).paired is False
    assert [len(side) for side in pair(third, first)[:2]] == [1, 3]
    line = {"round": 1, "uplink_bytes": 1, "downlink_bytes": 1, "test_accuracy": 0.5}
    unknown = [read_settings([write_folder(tmp_path / name, None, [line])])[0][0] for name in ("x", "y")]
    assert pair(*unknown).paired is False and pair(unknown[0], unknown[0]).paired is True


CHANCE, WORSE, BETTER = run([0.1], 1), run([0.3, 0.418], 10), run([0.5, 0.9, 0.968], 50)
GOOD = run([0.4, 0.9, 0.978], 10_000)


def test_few_bytes_to_a_low_accuracy_are_no_gain():
    """At 0.418 the reference needs two rounds, 20,000 bytes, and the setting 20: a thousandth, and not the accuracy."""
    found = gain(Pairing((WORSE,), (GOOD,), True))
    assert (found.in_bytes, found.in_rounds, found.within) == (None, None, False)
    assert (found.rounds.mean, found.num_bytes.mean, found.reference_bytes.mean) == (2.0, 20.0, 20_000.0)
    assert gain(Pairing((CHANCE,), (GOOD,), True)).in_bytes is None
    assert gain(Pairing((WORSE,), (GOOD,), True), target=0.3).in_bytes is None
    everything = gain(Pairing((WORSE,), (GOOD,), True), margin=1.0)
    assert (everything.in_bytes.mean, everything.within) == (1000.0, True)


def test_the_margin_itself_is_within_it():
    """0.968 is one point below 0.978, in decimals; in binary it is a little more."""
    assert 0.978 - 0.968 > 0.01
    found = gain(Pairing((BETTER,), (GOOD,), True))
    assert (found.within, found.in_bytes.mean) == (True, 200.0)  # both in round 3: 30,000 over 150
    assert not within(Pairing((BETTER,), (GOOD,), True), 0.009)
    assert within(Pairing((GOOD,), (BETTER,), True), 0.0)  # a setting that is better is within any margin


def test_whether_a_setting_is_within_the_margin_is_decided_by_means_over_seeds():
    """Best accuracies 0.95 and 0.99 against 0.978 twice: 0.97 is within one point, though one of the seeds is not."""
    setting = run([0.95], 1), run([0.99], 1)
    for paired in (True, False):
        assert gain(Pairing(setting, (GOOD, GOOD), paired)).within
        assert not gain(Pairing((setting[0], setting[0]), (GOOD, GOOD), paired)).within


def test_a_margin_in_words():
    assert (Measure().margin_in_words(0.01), Measure().margin_in_words(0.0), Measure().margin_in_words(0.025)) == (
        "1 point",
        "0 points",
        "2.5 points",
    )


MAE = Measure("mae", True, "test_mae", "test_mae")


def errors(values, num_bytes):
    """A run of absolute errors: its scores are their negatives."""
    return run([-v for v in values], num_bytes)


def test_of_a_metric_that_is_better_low_the_target_is_reached_from_above():
    # Errors 4, 2, 1 at 400 B a round, and 3, 1.5, 1.2 at 100 B: both reach 1.2 in round 3, and 1.5 in rounds 3 and 2.
    full, eight = errors([4.0, 2.0, 1.0], 400), errors([3.0, 1.5, 1.2], 100)
    found = gain(Pairing((eight,), (full,), True, MAE), margin=0.25)
    assert (found.target.mean, found.rounds.mean, found.reference_rounds.mean) == (1.2, 3, 3)
    assert (found.in_rounds.mean, found.in_bytes.mean, found.within) == (1.0, 4.0, True)
    at = gain(Pairing((eight,), (full,), True, MAE), target=1.5, margin=0.25)
    assert (at.target.mean, at.num_bytes.mean, at.reference_bytes.mean, at.in_bytes.mean) == (1.5, 200, 1200, 6.0)
    assert gain(Pairing((eight,), (full,), True, MAE), target=0.5, margin=0.25).reached == 0


def test_the_margin_of_an_error_is_a_share_of_the_references():
    full, eight = errors([4.0, 20.0, 10.0], 4), errors([9.0, 4.15], 1)
    assert within(Pairing((eight,), (full,), True, MAE), 0.04) and not within(
        Pairing((eight,), (full,), True, MAE), 0.03
    )
    assert within(Pairing((full,), (eight,), True, MAE), 0.0)  # better is always within
    assert gain(Pairing((eight,), (full,), True, MAE)).in_bytes is None


def test_the_gain_curve_of_an_error_goes_from_the_worst_value_to_the_best():
    full, eight = errors([4.0, 2.0, 1.0], 400), errors([3.0, 1.5, 1.2], 100)
    found = gain_curve(Pairing((eight,), (full,), True, MAE))
    # at 4: 400 / 100; at 3: 800 / 100; at 2: 800 / 200; at 1.5: 1200 / 200; at 1.2: 1200 / 300; 1 is reached by one
    np.testing.assert_array_equal(found.x, [4.0, 3.0, 2.0, 1.5, 1.2])
    np.testing.assert_allclose(found.mean, [4.0, 8.0, 4.0, 6.0, 4.0], rtol=1e-12)


def test_a_float32_value_far_above_1_counts_as_what_it_was_rounded_from():
    logged = float(np.float32(1234.567))
    assert logged > 1234.567
    assert reach(errors([logged], 1), -1234.567)[0] == 1
    assert np.isnan(reach(errors([1234.6], 1), -1234.567)[0])
