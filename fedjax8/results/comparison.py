"""Comparisons of settings: accuracy reached, bytes and rounds spent, and the gain against the first setting.

The gain and the accuracy at which it is taken are defined in `results.gain`. NumPy and the standard library
only.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.results.curves import Curve, Statistic, evaluations, statistic
from fedjax8.results.gain import MARGIN, Gain, Pairing, gain, gain_curve, pair
from fedjax8.results.runs import RunFolder, Setting, number, read_settings

SMOOTH_FROM = 50
"""Evaluations that every run must have for its accuracy to be smoothed by default."""
SMOOTH_WINDOW = 5
"""Evaluations averaged over then."""


PARTS = ("test", "validation")
"""Rows whose accuracy may choose."""


class Result(NamedTuple):
    """Accuracies and totals of one setting. A statistic over zero seeds is None."""

    setting: Setting
    pairing: Pairing
    """Its runs beside those of the first setting; the first is paired with itself."""
    gain: Gain
    best_accuracy: Statistic | None
    final_accuracy: Statistic | None
    rounds: Statistic | None
    uplink_bytes: Statistic | None
    downlink_bytes: Statistic | None
    saving: Statistic | None
    seconds: Statistic | None


class Comparison(NamedTuple):
    """The results in the order in which the settings were first given; the first is the reference."""

    results: tuple[Result, ...]
    target: float | None
    """The accuracy asked for; None if each pair of runs has its own."""
    smooth: int
    warnings: tuple[str, ...]
    margin: float = MARGIN
    """Largest distance below the reference's best accuracy at which a setting has a gain."""
    on: str = "test"
    """Rows whose accuracy chooses targets and best rounds: `test` or `validation`."""


def compare_runs(
    paths: Iterable[str | os.PathLike],
    target: float | None = None,
    smooth: int | None = None,
    margin: float = MARGIN,
    on: str = "test",
) -> Comparison:
    """Rounds and bytes of every setting to a target accuracy, its gain there against the first setting, and its totals.

    `target` in (0, 1] is a test accuracy for all; by default each run is compared with the run of the first
    setting that has its seed, at the lower of the two best smoothed test accuracies. `smooth` is the
    number of evaluations, up to the current one, over which the accuracy is averaged; by default 1, and 5 once every
    run has 50 evaluations. A setting whose best accuracy, mean over seeds, is more than `margin` below the reference's
    has no gain. With `on="validation"` all of this goes by the accuracy on validation rows, and `best_accuracy` is the
    test accuracy where that was best: test rows are for reporting alone. Raises `UserError` for a bad target, window or
    margin, unreadable runs, or no evaluation at all.
    """
    if target is not None and not 0 < target <= 1:
        raise UserError(f"target {target:g} is no test accuracy; give a number above 0 and up to 1, such as 0.9")
    if smooth is not None and smooth < 1:
        raise UserError(f"smooth={smooth} evaluations; give 1 (no smoothing) or more")
    if not 0 <= margin <= 1:
        raise UserError(
            f"margin {margin:g} is no difference of accuracies; give 0 to 1, such as 0.01 for one point, or 1 for any"
        )
    if on not in PARTS:
        raise UserError(f"on={on!r}; give one of {', '.join(PARTS)}")
    metric = f"{on}_accuracy"
    settings, warnings = read_settings(paths)
    runs = [run for setting in settings for run in setting.runs]
    counts = {run.path: len(evaluations(run, metric)[0]) for run in runs}
    if not any(counts.values()):
        hold = ", or run with --config.validation=0.1" if on == "validation" else ""
        raise UserError(f"no run has a {metric} yet; wait for a first evaluation{hold}")
    warnings += [f"{path}: no {metric} yet, left out of the gain" for path, count in counts.items() if not count]
    if smooth is None:
        smooth = SMOOTH_WINDOW if min(counts.values()) >= SMOOTH_FROM else 1
    evaluated = [run.rounds[evaluations(run, metric)[0]] for run in runs if counts[run.path] > 2]
    warnings += [note for setting in settings for note in _unequal_lengths(setting)]
    intervals = {int(np.median(np.diff(rounds))) for rounds in evaluated}
    if len(intervals) > 1:
        warnings.append(
            f"some runs are evaluated every {min(intervals)} rounds, some every {max(intervals)}: "
            "rounds and bytes to an accuracy are known to that interval only"
        )
    warnings += [f"{run.path}: the run diverged, see its summary.json" for run in runs if run.summary.get("diverged")]
    results = tuple(_result(setting, settings[0], target, smooth, margin, on) for setting in settings)
    warnings += _pairing_warnings(results)
    warnings += [] if target is None else _target_warnings(results)
    return Comparison(results, target, smooth, tuple(warnings), margin, on)


def not_reached(found: Comparison) -> list[str]:
    """Labels of the settings that have runs to compare and no gain, since they are not within the margin."""
    return [r.setting.label for r in found.results if r.gain.accuracy and not r.gain.within]


def gain_curves(found: Comparison, skip: int) -> dict[int, Curve]:
    """The gain in bytes against accuracy of every setting but the first that has one and is within the margin, by its
    place. Accuracies that some run reaches within `skip` evaluations are left out, if any are left then."""
    curves = {
        i: gain_curve(result.pairing, skip) or gain_curve(result.pairing)
        for i, result in enumerate(found.results)
        if i and result.gain.within
    }
    return {i: curve for i, curve in curves.items() if curve is not None}


def _unequal_lengths(setting: Setting) -> list[str]:
    ends = [int(run.rounds[-1]) for run in setting.runs]
    if min(ends) == max(ends):
        return []
    return [
        f"{setting.label}: its seeds end at rounds {min(ends)} to {max(ends)}; curves stop where the first "
        "one does, and totals are means over runs of unequal length"
    ]


def _result(setting: Setting, reference: Setting, target: float | None, smooth: int, margin: float, on: str) -> Result:
    accuracies = [found for run in setting.runs if len(found := evaluations(run, smooth=smooth)[1])]
    pairing = pair(setting, reference, smooth, f"{on}_accuracy")
    best = [found.max() for found in accuracies] if on == "test" else [_chosen(r, smooth, on) for r in setting.runs]
    return Result(
        setting=setting,
        pairing=pairing,
        gain=gain(pairing, target, margin),
        best_accuracy=statistic(best),
        final_accuracy=statistic(found[-1] for found in accuracies),
        rounds=statistic(run.rounds[-1] for run in setting.runs),
        uplink_bytes=statistic(run.uplink_bytes[-1] for run in setting.runs),
        downlink_bytes=statistic(run.downlink_bytes[-1] for run in setting.runs),
        saving=statistic(number(run.summary.get("saving")) for run in setting.runs),
        seconds=statistic(number(run.summary.get("seconds", float(run.elapsed_seconds[-1]))) for run in setting.runs),
    )


def _chosen(run: RunFolder, smooth: int, on: str) -> float:
    """The test accuracy at the evaluation at which that on other rows was best; NaN if there is none."""
    found, accuracy = evaluations(run, f"{on}_accuracy", smooth)
    tested, test = evaluations(run, smooth=smooth)
    if not len(found):
        return math.nan
    return float(dict(zip(tested.tolist(), test, strict=True)).get(int(found[np.argmax(accuracy)]), math.nan))


def _pairing_warnings(results: Sequence[Result]) -> list[str]:
    """Warnings of runs that were not compared seed by seed."""
    first, warnings = results[0], []
    for r in results[1:]:
        if not r.pairing.setting or not r.pairing.reference:
            continue  # a run without evaluations has a warning already
        if not r.pairing.paired:
            warnings.append(
                f"{r.setting.label}: no seed in common with {first.setting.label}, so its gain is a ratio of means "
                "over seeds, without a spread"
            )
        elif left_out := _seeds_of_one(r.setting, first.setting):
            warnings.append(
                f"{r.setting.label} and {first.setting.label}: only one of the two has seed {', '.join(left_out)}; "
                "left out of the gain"
            )
    return warnings


def _seeds_of_one(a: Setting, b: Setting) -> list[str]:
    seeds, others = ({json.dumps(run.seed) for run in setting.runs} for setting in (a, b))
    return sorted(seeds ^ others, key=lambda seed: (len(seed), seed))


def _target_warnings(results: Sequence[Result]) -> list[str]:
    """Warnings of settings that do not reach the given target."""
    first, others = results[0], results[1:]
    without = [r.setting.label for r in others if r.gain.in_bytes is None and r.gain.within]
    if first.gain.reached < first.gain.compared and without:
        which = "" if len(without) == len(others) else f" for {', '.join(without)}"
        return [
            f"the first setting ({first.setting.label}) does not reach the target with every seed, "
            f"so no gain is given{which}; lower --target or give another setting first"
        ]
    return [
        f"{r.setting.label}: {r.gain.reached} of {r.gain.compared} seeds reach the target, so no gain is given"
        for r in results
        if r.gain.reached < r.gain.compared
    ]
