import json
import math

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.results.comparison import compare_runs, gain_curves, not_reached
from fedjax8.results.report import explanation


@pytest.fixture
def two_settings(tmp_path, write_run):
    """float32 with 400 bytes a round reaches 0.8 in rounds 3 and 5; 8 bits with 100 bytes a round in 4 and
    4.
    """
    return [
        write_run(tmp_path / "a0", [0.2, 0.5, 0.8, 0.9, 0.85], (300, 100), seed=0, bits=32),
        write_run(tmp_path / "a1", [0.1, 0.4, 0.6, 0.7, 0.80], (300, 100), seed=1, bits=32),
        write_run(tmp_path / "b0", [0.1, 0.3, 0.5, 0.8, 0.82], (75, 25), seed=0, bits=8),
        write_run(tmp_path / "b1", [0.1, 0.3, 0.5, 0.9, 0.84], (75, 25), seed=1, bits=8),
    ]


def test_at_a_target_rounds_bytes_and_gain_are_means_over_seeds(two_settings):
    first, second = compare_runs(two_settings, target=0.8).results
    assert [first.setting.label, second.setting.label] == ["bits=32", "bits=8"]
    # rounds 3 and 5: mean 4, sample deviation sqrt(2); at 400 bytes a round 1200 and 2000 bytes
    spread = pytest.approx(math.sqrt(2), rel=1e-12)
    assert (first.gain.rounds, first.gain.reached) == ((4.0, spread, 2), 2)
    assert first.gain.num_bytes == (1600.0, pytest.approx(400 * math.sqrt(2), rel=1e-12), 2)
    assert (second.gain.rounds, second.gain.num_bytes) == ((4.0, 0.0, 2), (400.0, 0.0, 2))
    # 1200 / 400 and 2000 / 400 bytes, 3 / 4 and 5 / 4 rounds
    assert first.gain.in_bytes == (1.0, 0.0, 2)
    assert second.gain.in_bytes == (4.0, spread, 2)
    assert second.gain.in_rounds == (1.0, pytest.approx(0.25 * math.sqrt(2), rel=1e-12), 2)


def test_best_final_and_total_figures_are_means_over_seeds(two_settings):
    first, second = compare_runs(two_settings, target=0.8).results
    assert first.best.mean == pytest.approx((0.9 + 0.8) / 2, rel=1e-12)
    assert first.final.mean == pytest.approx((0.85 + 0.80) / 2, rel=1e-12)
    assert (first.uplink_bytes.mean, first.downlink_bytes.mean) == (1500.0, 500.0)
    assert (second.uplink_bytes.mean, second.downlink_bytes.mean) == (375.0, 125.0)
    assert (first.saving.mean, first.seconds.mean, first.rounds.mean) == (4.0, 9.0, 5.0)


def test_by_default_each_pair_of_seeds_is_compared_at_the_lower_of_its_two_best_accuracies(two_settings):
    found = compare_runs(two_settings)
    assert (found.target, found.warnings) == (None, ())
    gain = found.results[1].gain
    # seed 0: 0.82 of 0.9 and 0.82, rounds 4 and 5; seed 1: 0.80 of 0.80 and 0.9, rounds 5 and 4
    assert gain.target == (pytest.approx(0.81), pytest.approx(0.02 / math.sqrt(2)), 2)
    assert (gain.rounds.mean, gain.num_bytes.mean) == (4.5, 450.0)
    assert (gain.reference_rounds.mean, gain.reference_bytes.mean) == (4.5, 1800.0)
    # 4 / 5 and 5 / 4 rounds; 1600 / 500 = 3.2 and 2000 / 400 = 5 bytes
    assert gain.in_rounds == (pytest.approx(1.025), pytest.approx(0.45 / math.sqrt(2)), 2)
    assert gain.in_bytes == (pytest.approx(4.1), pytest.approx(1.8 / math.sqrt(2)), 2)


def test_a_setting_that_trains_badly_changes_nothing_for_the_others(two_settings, tmp_path, write_run):
    bad = [write_run(tmp_path / f"bad{seed}", [0.1, 0.15], (1, 1), seed=seed, bits=2) for seed in (0, 1)]
    alone, among = compare_runs(two_settings).results, compare_runs([*two_settings, *bad]).results
    assert [r.gain for r in alone] == [r.gain for r in among[:2]]
    assert among[2].gain.target.mean == 0.15


def test_seeds_that_only_one_setting_has_are_left_out_of_the_gain_with_a_warning(two_settings, tmp_path, write_run):
    more = write_run(tmp_path / "b2", [0.9] * 5, (75, 25), seed=2, bits=8)
    found = compare_runs([*two_settings, more])
    assert found.results[1].gain == compare_runs(two_settings).results[1].gain
    assert found.results[1].best.count == 3
    assert found.warnings == ("bits=8 and bits=32: only one of the two has seed 2; left out of the gain",)


def test_settings_without_a_seed_in_common_are_compared_by_means_with_a_warning(two_settings, tmp_path, write_run):
    others = [write_run(tmp_path / f"c{seed}", [0.2, 0.85], (75, 25), seed=seed, bits=4) for seed in (7, 8, 9)]
    found = compare_runs([*two_settings[:2], *others])
    gain = found.results[1].gain
    # 0.8 is the lowest of 0.9, 0.8 and 0.85: rounds 3 and 5 of 400 bytes, against round 2 of 100 bytes
    assert (gain.target.mean, gain.rounds.mean, gain.reference_rounds.mean) == (0.8, 2.0, 4.0)
    assert (gain.in_rounds.mean, gain.in_bytes.mean) == (2.0, 8.0)
    assert math.isnan(gain.in_bytes.spread) and not gain.paired
    assert found.warnings == (
        "bits=4: no seed in common with bits=32, so its gain is a ratio of means over seeds, without a spread",
    )


def test_a_setting_without_seeds_has_no_spread(tmp_path, write_run):
    (result,) = compare_runs([write_run(tmp_path / "a", [0.5], (1, 1))]).results
    assert result.best.count == 1 and math.isnan(result.best.spread)
    assert result.gain.in_bytes.count == 1 and math.isnan(result.gain.in_bytes.spread)


def test_a_target_out_of_reach_gives_no_rounds_bytes_or_gain(two_settings):
    found = compare_runs(two_settings, target=0.95)
    for gain in (r.gain for r in found.results):
        assert (gain.reached, gain.rounds, gain.num_bytes, gain.in_rounds, gain.in_bytes) == (0, *[None] * 4)
    assert len(found.warnings) == 1 and "first setting (bits=32) does not reach" in found.warnings[0]


def test_no_gain_is_given_where_only_some_seeds_reach_the_target(two_settings):
    found = compare_runs([two_settings[2], two_settings[3], two_settings[0], two_settings[1]], target=0.82)
    eight, full = (r.gain for r in found.results)
    assert (eight.reached, eight.in_bytes.mean) == (2, 1.0)
    assert (full.reached, full.rounds.mean, full.in_bytes) == (1, 4.0, None)
    assert found.warnings == ("bits=32: 1 of 2 seeds reach the target, so no gain is given",)
    assert [r.gain.in_bytes for r in compare_runs(two_settings, target=0.82).results] == [None, None]


def test_a_setting_that_never_reaches_the_target_is_named_and_the_others_keep_their_gain(
    two_settings, tmp_path, write_run
):
    bad = write_run(tmp_path / "bad", [0.1, 0.15], (1, 1), bits=2)
    found = compare_runs([*two_settings[:2], bad, *two_settings[2:]], target=0.8)
    assert [r.gain.in_bytes is None for r in found.results] == [False, True, False]
    assert "bits=2: 0 of 1 seeds reach the target, so no gain is given" in found.warnings


def test_only_evaluated_rounds_count(tmp_path, write_run):
    folder = write_run(tmp_path / "a", [0.5, 0.9], (10, 0), every=5)
    (result,) = compare_runs([folder], target=0.6).results
    assert (result.gain.rounds.mean, result.gain.num_bytes.mean) == (10.0, 100.0)


def test_a_float32_accuracy_just_under_the_target_reaches_it(tmp_path, write_run):
    logged = float(np.float32(0.9))
    assert logged < 0.9
    (result,) = compare_runs([write_run(tmp_path / "a", [logged], (1, 0))], target=0.9).results
    assert result.gain.reached == 1


def test_smoothing_averages_each_evaluation_with_those_before_it(tmp_path, write_run):
    folder = write_run(tmp_path / "a", [0.0, 0.9, 0.3, 0.9, 0.9], (1, 0))
    # means of two: 0, 0.45, 0.6, 0.6, 0.9
    (result,) = compare_runs([folder], target=0.6, smooth=2).results
    assert result.gain.rounds.mean == 3.0
    assert result.best.mean == pytest.approx(0.9, rel=1e-12)
    (result,) = compare_runs([folder], target=0.6).results
    assert result.gain.rounds.mean == 2.0


def test_runs_of_fifty_evaluations_are_smoothed_by_default(tmp_path, write_run):
    short = write_run(tmp_path / "short", [0.5] * 49, (1, 0), bits=1)
    long = write_run(tmp_path / "long", [0.5] * 50, (1, 0), bits=2)
    assert compare_runs([long]).smooth == 5
    assert compare_runs([long, short]).smooth == 1
    assert compare_runs([long], smooth=3).smooth == 3


@pytest.mark.parametrize("target", [0.0, -0.1, 1.01, math.nan])
def test_a_target_outside_zero_to_one_is_an_error(two_settings, target):
    with pytest.raises(UserError, match="no test accuracy"):
        compare_runs(two_settings, target=target)


def test_a_window_below_one_is_an_error(two_settings):
    with pytest.raises(UserError, match="smooth=0"):
        compare_runs(two_settings, smooth=0)


def test_a_run_without_evaluations_is_reported_and_alone_an_error(tmp_path, two_settings, write_run):
    bare = write_run(tmp_path / "bare", [None, None], (1, 1), bits=2)
    found = compare_runs([*two_settings, bare])
    assert [r.gain for r in found.results[:2]] == [r.gain for r in compare_runs(two_settings).results]
    assert found.results[2].best is None and found.results[2].gain.compared == 0
    assert found.warnings == (f"{bare}: no test_accuracy yet, left out of the gain",)
    with pytest.raises(UserError, match="no run has a test_accuracy"):
        compare_runs([bare])


def test_a_value_that_is_not_finite_is_said_and_an_earlier_one_does_not_stand_for_the_last(
    tmp_path, two_settings, write_run
):
    ends = write_run(tmp_path / "ends", [0.5, math.nan, 0.9, math.nan], (1, 1), bits=2)
    between = write_run(tmp_path / "between", [0.5, math.nan, 0.9], (1, 1), bits=3)
    never = write_run(tmp_path / "never", [math.nan, math.nan], (1, 1), bits=4)
    found = compare_runs([*two_settings, ends, between, never])
    of_ends, of_between, of_never = found.results[-3:]
    assert of_ends.final is None and of_ends.best.mean == 0.9 and of_between.final.mean == 0.9
    assert of_never.final is None and of_never.best is None
    said = [warning for warning in found.warnings if "finite" in warning]
    assert said == [
        f"{ends}: test_accuracy is finite at 2 of 4 evaluations, which are compared alone; its last is not, so it has "
        "no final value",
        f"{between}: test_accuracy is finite at 2 of 3 evaluations, which are compared alone",
        f"{never}: test_accuracy is never finite, left out",
    ]
    with pytest.raises(UserError, match=r"test_accuracy of .*never is not finite at any evaluation"):
        compare_runs([never])


def test_losses_of_different_tasks_are_compared_with_a_warning_alone(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.5, 0.6])
    b = write_run(tmp_path / "b", [0.5, 0.6], task={"name": "regression"})
    said = "the runs have different tasks (classification, regression), so their losses are different functions"
    assert said in compare_runs([a, b], metric="loss").warnings
    assert said not in compare_runs([a, b]).warnings and said not in compare_runs([b], metric="loss").warnings


def test_unequal_evaluation_intervals_and_lengths_are_reported(tmp_path, write_run):
    a = write_run(tmp_path / "a", [0.5] * 4, (1, 1), every=5, seed=0)
    b = write_run(tmp_path / "b", [0.5] * 8, (1, 1), every=1, seed=1, finished=False)
    warnings = compare_runs([a, b]).warnings
    assert any("evaluated every 1 rounds, some every 5" in w for w in warnings)
    assert any("its seeds end at rounds 8 to 20" in w for w in warnings)
    assert any("unfinished, read up to round 8" in w for w in warnings)


def test_without_a_summary_seconds_are_those_of_the_rounds(tmp_path, write_run):
    (result,) = compare_runs([write_run(tmp_path / "a", [0.5] * 4, (1, 1), finished=False)]).results
    assert (result.seconds.mean, result.saving) == (2.0, None)


@pytest.mark.parametrize("margin", [-0.01, 1.01, math.nan])
def test_a_margin_that_is_no_difference_of_accuracies_is_an_error(two_settings, margin):
    with pytest.raises(UserError, match="no difference of accuracy"):
        compare_runs(two_settings, margin=margin)


def test_settings_beyond_the_margin_are_named_and_have_neither_gain_nor_curve(two_settings, tmp_path, write_run):
    """Best accuracies: 0.85 (mean of 0.9 and 0.8), 0.86 and 0.15."""
    bad = [write_run(tmp_path / f"bad{seed}", [0.1, 0.15], (1, 1), seed=seed, bits=2) for seed in (0, 1)]
    found = compare_runs([*two_settings, *bad])
    assert [r.gain.within for r in found.results] == [True, True, False]
    assert not_reached(found) == ["bits=2"] and list(gain_curves(found, 0)) == [1]
    loose = compare_runs([*two_settings, *bad], margin=0.7)
    assert not_reached(loose) == [] and list(gain_curves(loose, 0)) == [1, 2]
    # at 0.15 the reference needs rounds 1 and 2 of 400 bytes, the setting round 2 of 2 bytes: (100 + 200) / 2
    assert loose.results[2].gain.in_bytes.mean == pytest.approx((400 / 4 + 800 / 4) / 2)


def test_a_run_that_diverged_is_warned_of(tmp_path, write_run):
    folder = write_run(tmp_path / "a", [0.5, 0.1])
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"diverged": True}))
    assert compare_runs([folder]).warnings == (f"{folder}: the run diverged, see its summary.json",)


def run_with_validation(write_folder, folder, tests, validations, per_round, name):
    lines = [
        {"round": r, "uplink_bytes": r * per_round, "downlink_bytes": 0, "test_accuracy": t, "validation_accuracy": v}
        for r, (t, v) in enumerate(zip(tests, validations, strict=True), 1)
    ]
    return write_folder(folder, {"seed": 0, "uplink": name}, lines)


def test_with_validation_rows_choosing_goes_by_them_and_test_rows_are_reported(tmp_path, write_folder):
    """By hand: the first setting is best on validation rows in round 2 (0.8), the second in round 3 (0.79)."""
    a = run_with_validation(write_folder, tmp_path / "a", [0.5, 0.6, 0.9], [0.7, 0.8, 0.6], 100, "a")
    b = run_with_validation(write_folder, tmp_path / "b", [0.95, 0.4, 0.7], [0.1, 0.5, 0.79], 10, "b")
    found = compare_runs([a, b], on="validation")
    first, second = found.results
    assert (first.best.mean, second.best.mean) == (0.6, 0.7)  # test, where validation is best
    assert (first.final.mean, second.final.mean) == (0.9, 0.7)
    # Both reach 0.79: the first in round 2 (200 bytes), the second in round 3 (30 bytes).
    assert second.gain.target.mean == 0.79 and second.gain.in_bytes.mean == pytest.approx(200 / 30)
    by_test = compare_runs([a, b]).results[1]
    assert by_test.best.mean == 0.95 and by_test.gain.in_bytes.mean == pytest.approx(300 / 10)
    at = compare_runs([a, b], target=0.5, on="validation").results[1].gain
    assert (at.rounds.mean, at.reference_rounds.mean) == (2, 1)
    words = " ".join(explanation(found))
    assert "the lower of the best validation accuracy of a run" in words
    assert "Best accuracy: the test accuracy where the validation accuracy is best" in words


def test_runs_without_validation_rows_are_told_how_to_have_some(tmp_path, write_run):
    with pytest.raises(UserError, match=r"no run has a validation_accuracy yet.*--config\.validation=0\.1"):
        compare_runs([write_run(tmp_path / "a", [0.5])], on="validation")
    with pytest.raises(UserError, match="give one of test, validation"):
        compare_runs([tmp_path / "a"], on="train")


REGRESSION = {"task": {"metric": "mae", "directions": {"mae": "lower", "loss": "lower"}}}


def test_runs_of_a_regression_are_compared_by_their_error_of_which_less_is_better(tmp_path, write_run):
    made = {"metric": "mae", "document": REGRESSION, "loss": False}
    full = write_run(tmp_path / "full", [4.0, 2.0, 1.0, 1.5], (300, 100), bits=32, **made)
    eight = write_run(tmp_path / "eight", [3.0, 1.5, 1.005, 2.0], (75, 25), bits=8, **made)
    found = compare_runs([full, eight])
    assert (found.measure.metric, found.measure.lower) == ("mae", True)
    first, second = found.results
    assert (first.best.mean, first.final.mean, second.best.mean, second.final.mean) == (1.0, 1.5, 1.005, 2.0)
    # both reach 1.005 in round 3, at 1200 and 300 bytes; it is within 1% of 1.0
    assert (second.gain.target.mean, second.gain.in_bytes.mean) == (1.005, 4.0)
    assert compare_runs([full, eight], margin=0.001).results[1].gain.in_bytes is None
    assert compare_runs([full, eight], target=3.0).results[1].gain.in_bytes.mean == 800 / 100
    with pytest.raises(UserError, match="target inf is no test MAE; give a finite number"):
        compare_runs([full, eight], target=math.inf)
    with pytest.raises(UserError, match=r"margin -1 is no difference of MAE; give 0 or more, such as 0\.01 for 1%"):
        compare_runs([full, eight], margin=-1.0)
    assert compare_runs([full, eight], target=2.5, margin=math.inf).results[1].gain.in_bytes.mean == 800 / 200


def test_any_metric_can_be_compared_by(two_settings):
    found = compare_runs(two_settings, metric="loss", target=0.5)
    # test_loss is 1 / round: 0.5 in round 2 of all
    assert [r.gain.rounds.mean for r in found.results] == [2.0, 2.0]
    assert found.results[1].gain.in_bytes.mean == 4.0
    assert found.results[0].best.mean == 0.2
    with pytest.raises(UserError, match="no run has the metric 'mae' on test rows; there are accuracy, loss"):
        compare_runs(two_settings, metric="mae")


def test_only_runs_with_the_tags_are_compared(tmp_path, write_run):
    folders = [
        write_run(tmp_path / name, [0.5], bits=bits, document={"labels": {"tags": tags}})
        for bits, (name, tags) in enumerate([("a", ["x", "y"]), ("b", ["x"]), ("c", ["y"])])
    ]
    assert len(compare_runs(folders, tags=["x"]).results) == 2
    assert [run.path for r in compare_runs(folders, tags=["x", "y"]).results for run in r.setting.runs] == folders[:1]
    with pytest.raises(UserError, match="no run has the tag z; there are x, y"):
        compare_runs(folders, tags=["z"])


def test_seconds_of_training_are_those_in_rounds_without_compiling(tmp_path, write_folder):
    lines = [
        # a call of two rounds of 6 s each, 5 s of them compiling; then one of 2 s
        {"round": 1, "uplink_bytes": 1, "downlink_bytes": 1, "round_seconds": 6.0, "compile_seconds": 5.0},
        {"round": 2, "uplink_bytes": 2, "downlink_bytes": 2, "round_seconds": 6.0, "test_accuracy": 0.5},
        {"round": 3, "uplink_bytes": 3, "downlink_bytes": 3, "round_seconds": 2.0, "test_accuracy": 0.6},
    ]
    done = {"rounds": 3, "finished": True, "seconds": 15.0, "compile_seconds": 5.5}
    (result,) = compare_runs([write_folder(tmp_path / "a", {"seed": 0}, lines, done)]).results
    assert (result.seconds.mean, result.training.mean, result.compiling.mean) == (15.0, 9.0, 5.5)
    assert result.setting.runs[0].elapsed_seconds.tolist() == [1.0, 7.0, 9.0]
