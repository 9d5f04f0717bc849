import json
import math

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.simulation.comparison import compare_runs, curve, moving_mean, statistic
from fedjax8.simulation.runs import read_settings


def write_run(folder, accuracies, per_round, *, seed=0, every=1, summary=True, **config):
    """A run that sends `per_round` = (up, down) bytes a round and evaluates every `every` rounds."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"config": {"seed": seed, **config}}))
    rounds = every * len(accuracies)
    with (folder / "metrics.jsonl").open("w") as file:
        for r in range(1, rounds + 1):
            up, down = (r * x for x in per_round)
            line = {"round": r, "uplink_bytes": up, "downlink_bytes": down, "round_seconds": 0.5}
            if r % every == 0:
                line |= {"test_accuracy": accuracies[r // every - 1], "test_loss": 1.0 / r}
            file.write(json.dumps(line) + "\n")
    if summary:
        done = {"rounds": rounds, "saving": 4.0, "seconds": 9.0, "finished": True}
        (folder / "summary.json").write_text(json.dumps(done))
    return folder


@pytest.fixture
def two_settings(tmp_path):
    """float32 with 400 bytes a round reaches 0.8 in rounds 3 and 5; 8 bits with 100 bytes a round in 4 and
    4.
    """
    return [
        write_run(tmp_path / "a0", [0.2, 0.5, 0.8, 0.9, 0.85], (300, 100), seed=0, bits=32),
        write_run(tmp_path / "a1", [0.1, 0.4, 0.6, 0.7, 0.80], (300, 100), seed=1, bits=32),
        write_run(tmp_path / "b0", [0.1, 0.3, 0.5, 0.8, 0.82], (75, 25), seed=0, bits=8),
        write_run(tmp_path / "b1", [0.1, 0.3, 0.5, 0.9, 0.84], (75, 25), seed=1, bits=8),
    ]


def test_rounds_bytes_and_gain_are_means_over_seeds(two_settings):
    first, second = compare_runs(two_settings, target=0.8).results
    assert [first.setting.label, second.setting.label] == ["bits=32", "bits=8"]
    # rounds 3 and 5: mean 4, sample deviation sqrt(2); at 400 bytes a round 1200 and 2000 bytes
    assert (first.rounds_to_target.mean, first.reached) == (4.0, 2)
    assert first.rounds_to_target.spread == pytest.approx(math.sqrt(2), rel=1e-12)
    assert first.bytes_to_target.mean == 1600.0
    assert first.bytes_to_target.spread == pytest.approx(400 * math.sqrt(2), rel=1e-12)
    assert (second.rounds_to_target.mean, second.rounds_to_target.spread) == (4.0, 0.0)
    assert second.bytes_to_target.mean == 400.0
    assert (first.gain, second.gain) == (1.0, 4.0)


def test_best_final_and_total_figures_are_means_over_seeds(two_settings):
    first, second = compare_runs(two_settings, target=0.8).results
    assert first.best_accuracy.mean == pytest.approx((0.9 + 0.8) / 2, rel=1e-12)
    assert first.final_accuracy.mean == pytest.approx((0.85 + 0.80) / 2, rel=1e-12)
    assert (first.uplink_bytes.mean, first.downlink_bytes.mean) == (1500.0, 500.0)
    assert (second.uplink_bytes.mean, second.downlink_bytes.mean) == (375.0, 125.0)
    assert (first.saving.mean, first.seconds.mean, first.rounds.mean) == (4.0, 9.0, 5.0)


def test_the_default_target_is_the_lowest_best_accuracy_so_every_run_reaches_it(two_settings):
    found = compare_runs(two_settings)
    assert found.target == 0.8  # bests are 0.9, 0.8, 0.82, 0.9
    assert not found.target_given
    assert [r.reached for r in found.results] == [2, 2]
    assert found.warnings == ()


def test_a_setting_without_seeds_has_no_spread(tmp_path):
    (result,) = compare_runs([write_run(tmp_path / "a", [0.5], (1, 1))]).results
    assert result.best_accuracy.count == 1 and math.isnan(result.best_accuracy.spread)


def test_a_target_out_of_reach_gives_no_rounds_bytes_or_gain(two_settings):
    found = compare_runs(two_settings, target=0.95)
    for result in found.results:
        assert (result.reached, result.rounds_to_target, result.bytes_to_target, result.gain) == (
            0,
            None,
            None,
            None,
        )
    assert len(found.warnings) == 1 and "first setting (bits=32) does not reach" in found.warnings[0]


def test_no_gain_is_given_where_only_some_seeds_reach_the_target(two_settings):
    found = compare_runs([two_settings[2], two_settings[3], two_settings[0], two_settings[1]], target=0.82)
    eight, full = found.results
    assert (eight.reached, eight.gain) == (2, 1.0)
    assert (full.reached, full.rounds_to_target.mean, full.gain) == (1, 4.0, None)
    assert found.warnings == ("bits=32: 1 of 2 seeds reach the target, so no gain is given",)
    assert [r.gain for r in compare_runs(two_settings, target=0.82).results] == [None, None]


def test_only_evaluated_rounds_count(tmp_path):
    folder = write_run(tmp_path / "a", [0.5, 0.9], (10, 0), every=5)
    (result,) = compare_runs([folder], target=0.6).results
    assert (result.rounds_to_target.mean, result.bytes_to_target.mean) == (10.0, 100.0)


def test_a_float32_accuracy_just_under_the_target_reaches_it(tmp_path):
    logged = float(np.float32(0.9))
    assert logged < 0.9
    (result,) = compare_runs([write_run(tmp_path / "a", [logged], (1, 0))], target=0.9).results
    assert result.reached == 1


def test_smoothing_averages_each_evaluation_with_those_before_it(tmp_path):
    folder = write_run(tmp_path / "a", [0.0, 0.9, 0.3, 0.9, 0.9], (1, 0))
    # means of two: 0, 0.45, 0.6, 0.6, 0.9
    (result,) = compare_runs([folder], target=0.6, smooth=2).results
    assert result.rounds_to_target.mean == 3.0
    assert result.best_accuracy.mean == pytest.approx(0.9, rel=1e-12)
    (result,) = compare_runs([folder], target=0.6).results
    assert result.rounds_to_target.mean == 2.0


def test_runs_of_fifty_evaluations_are_smoothed_by_default(tmp_path):
    short = write_run(tmp_path / "short", [0.5] * 49, (1, 0), bits=1)
    long = write_run(tmp_path / "long", [0.5] * 50, (1, 0), bits=2)
    assert compare_runs([long]).smooth == 5
    assert compare_runs([long, short]).smooth == 1
    assert compare_runs([long], smooth=3).smooth == 3


def test_moving_mean_agrees_with_sums_by_hand():
    values = np.array([1.0, 3.0, 5.0, 11.0])
    np.testing.assert_array_equal(moving_mean(values, 1), values)
    # exact: small integers, divided by 1, 2, 3
    np.testing.assert_array_equal(moving_mean(values, 3), [1.0, 2.0, 3.0, 19.0 / 3.0])


def test_statistic_leaves_out_what_is_not_finite():
    assert statistic([]) is None and statistic([math.nan]) is None
    assert statistic([2.0, math.nan, 4.0]) == (3.0, pytest.approx(math.sqrt(2), rel=1e-12), 2)


@pytest.mark.parametrize("target", [0.0, -0.1, 1.01, math.nan])
def test_a_target_outside_zero_to_one_is_an_error(two_settings, target):
    with pytest.raises(UserError, match="no test accuracy"):
        compare_runs(two_settings, target=target)


def test_a_window_below_one_is_an_error(two_settings):
    with pytest.raises(UserError, match="smooth=0"):
        compare_runs(two_settings, smooth=0)


def test_a_run_without_evaluations_is_reported_and_alone_an_error(tmp_path, two_settings):
    bare = write_run(tmp_path / "bare", [None, None], (1, 1), bits=2)
    found = compare_runs([*two_settings, bare])
    assert found.target == 0.8
    assert found.results[2].best_accuracy is None and found.results[2].reached == 0
    assert f"{bare}: no test_accuracy yet" in found.warnings
    with pytest.raises(UserError, match="no run has a test_accuracy"):
        compare_runs([bare])


def test_unequal_evaluation_intervals_and_lengths_are_reported(tmp_path):
    a = write_run(tmp_path / "a", [0.5] * 4, (1, 1), every=5, seed=0)
    b = write_run(tmp_path / "b", [0.5] * 8, (1, 1), every=1, seed=1, summary=False)
    warnings = compare_runs([a, b]).warnings
    assert any("evaluated every 1 rounds, some every 5" in w for w in warnings)
    assert any("its seeds end at rounds 8 to 20" in w for w in warnings)
    assert any("unfinished, read up to round 8" in w for w in warnings)


def test_without_a_summary_seconds_are_those_of_the_rounds(tmp_path):
    (result,) = compare_runs([write_run(tmp_path / "a", [0.5] * 4, (1, 1), summary=False)]).results
    assert (result.seconds.mean, result.saving) == (2.0, None)


def test_a_curve_is_the_mean_over_the_rounds_that_all_seeds_evaluated(tmp_path):
    a = write_run(tmp_path / "a", [0.2, 0.4, 0.9], (3, 1), seed=0)
    b = write_run(tmp_path / "b", [0.4, 0.8], (5, 3), seed=1)
    (setting,) = read_settings([a, b])[0]
    found = curve(setting)
    assert found.x.tolist() == [6.0, 12.0]  # 4 and 8 bytes a round
    np.testing.assert_allclose(found.mean, [0.3, 0.6], rtol=1e-12)
    # two values d apart have sample deviation d / sqrt(2)
    np.testing.assert_allclose(found.spread, [0.2 / math.sqrt(2), 0.4 / math.sqrt(2)], rtol=1e-12)
    assert curve(setting, "rounds").x.tolist() == [1.0, 2.0]
    assert curve(setting, "seconds").x.tolist() == [0.5, 1.0]
    assert curve(setting, y="absent") is None
    with pytest.raises(UserError, match="allowed: bytes, rounds, seconds"):
        curve(setting, "epochs")
