"""Comparisons of settings: metric reached, bytes and rounds spent, and the gain against the first setting.

The gain and the target at which it is taken are defined in `results.gain`. NumPy and the standard library
only.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax8.directions import AUTO
from fedjax8.errors import UserError
from fedjax8.results.curves import Curve, Statistic, evaluations, simulated_seconds, statistic, waiting_share
from fedjax8.results.gain import MARGIN, Gain, Pairing, gain, gain_curve, pair
from fedjax8.results.log import OTHERS, NotYet, number
from fedjax8.results.measure import ACCURACY, Measure, measure_of
from fedjax8.results.runs import RunFolder, Setting, read_settings

SMOOTH_FROM = 50
"""Evaluations that every run must have for its metric to be smoothed by default."""
SMOOTH_WINDOW = 5
"""Evaluations averaged over then."""


class Result(NamedTuple):
    """Values of the metric and totals of one setting. A statistic over zero seeds is None."""

    setting: Setting
    pairing: Pairing
    """Its runs beside those of the first setting; the first is paired with itself."""
    gain: Gain
    best: Statistic | None
    """The metric on test rows where it, or that on validation rows, is best."""
    final: Statistic | None
    """The metric on test rows at the end, of the runs in which it is finite there."""
    rounds: Statistic | None
    uplink_bytes: Statistic | None
    downlink_bytes: Statistic | None
    other_bytes: Mapping[str, Statistic | None]
    """Of the directions beside these that any of its runs has."""
    saving: Statistic | None
    seconds: Statistic | None
    """Of the whole run."""
    training: Statistic | None
    """Seconds spent in rounds without compilation, of the runs that logged this."""
    compiling: Statistic | None
    """Seconds of compilation."""
    simulated: Statistic | None = None
    """Simulated seconds of the whole run, of the runs with a clock; the following likewise."""
    waiting: Statistic | None = None
    """Share of them that clients wait."""
    peak_rate: Statistic | None = None
    """Largest simultaneous rate of the server's link in any round, in bytes a second."""
    wasted_bytes: Statistic | None = None

    @property
    def timed(self) -> bool:
        """Whether all its runs have a clock."""
        return self.simulated is not None and self.simulated.count == len(self.setting.runs)


class Comparison(NamedTuple):
    """The results in the order in which the settings were first given; the first is the reference."""

    results: tuple[Result, ...]
    target: float | None
    """The value asked for; None if each pair of runs has its own."""
    smooth: int
    warnings: tuple[str, ...]
    margin: float = MARGIN
    """Largest distance from the reference's best value at which a setting has a gain; see `Measure.distance`."""
    measure: Measure = ACCURACY
    """The metric compared by, and the rows that choose targets and best rounds."""

    @property
    def timed(self) -> bool:
        """Whether all runs have a clock, so that simulated seconds to the target are compared."""
        return all(result.timed for result in self.results)

    @property
    def clocks(self) -> bool:
        """Whether some run has a clock."""
        return any(result.simulated for result in self.results)


def compare_runs(
    paths: Iterable[str | os.PathLike],
    target: float | None = None,
    smooth: int | None = None,
    margin: float = MARGIN,
    on: str = "test",
    metric: str | None = None,
    direction: str = AUTO,
    tags: Sequence[str] = (),
) -> Comparison:
    """Rounds and bytes of every setting to a target, its gain there against the first setting, and its totals.

    `metric` is what is compared, by default the first metric of the runs' own task; `direction` says whether it is
    better `higher` or `lower` where neither the task nor the name does. `target` is a value of it for all; by default
    each run is compared with the run of the first setting that has its seed, at the worse of the two best smoothed
    values. `smooth` is the number of evaluations, up to the current one, over which the metric is averaged; by default
    1, and 5 once every run has 50 evaluations. A setting whose best value, mean over seeds, is worse than the
    reference's by more than `margin` has no gain (`Measure.distance`). With `on="validation"` all of this goes by the
    metric on validation rows, and `best` is that on test rows where that was best: test rows are for reporting alone.
    With `tags`, only runs that have all of them. Raises `UserError` for a bad target, window or margin, unreadable
    runs, a metric that none has, or no evaluation at all.
    """
    if smooth is not None and smooth < 1:
        raise UserError(f"smooth={smooth} evaluations; give 1 (no smoothing) or more")
    settings, warnings = read_settings(paths, tags)
    runs = [run for setting in settings for run in setting.runs]
    measure = measure_of(runs, metric, direction, on)
    _check_numbers(measure, target, margin)
    counts = {run.path: len(evaluations(run, measure.chooses)[0]) for run in runs}
    never = [run.path for run in runs if not counts[run.path] and run.last(measure.chooses) is not None]
    if not any(counts.values()):
        if never:
            raise NotYet(f"{measure.chooses} of {never[0]} is not finite at any evaluation, and no other run has one")
        hold = ", or run with --config.validation=0.1" if on == "validation" else ""
        raise NotYet(f"no run has a {measure.chooses} yet; wait for a first evaluation{hold}")
    left_out = [path for path, count in counts.items() if not count and path not in never]
    warnings += [f"{path}: no {measure.chooses} yet, left out of the gain" for path in left_out]
    warnings += _not_finite(runs, measure)
    warnings += _losses_of_tasks(runs, measure)
    if smooth is None:
        smooth = SMOOTH_WINDOW if min(counts.values()) >= SMOOTH_FROM else 1
    evaluated = [run.rounds[evaluations(run, measure.chooses)[0]] for run in runs if counts[run.path] > 2]
    warnings += [note for setting in settings for note in _unequal_lengths(setting)]
    intervals = {int(np.median(np.diff(rounds))) for rounds in evaluated}
    if len(intervals) > 1:
        warnings.append(
            f"some runs are evaluated every {min(intervals)} rounds, some every {max(intervals)}: "
            "rounds and bytes to a target are known to that interval only"
        )
    warnings += [f"{run.path}: the run diverged, see its summary.json" for run in runs if run.summary.get("diverged")]
    results = tuple(_result(setting, settings[0], target, smooth, margin, measure) for setting in settings)
    warnings += _pairing_warnings(results)
    warnings += [] if target is None else _target_warnings(results)
    return Comparison(results, target, smooth, tuple(warnings), margin, measure)


def _check_numbers(measure: Measure, target: float | None, margin: float) -> None:
    """Raises UserError for a target or a margin that cannot be meant."""
    if target is not None and (not 0 < target <= 1 if measure.percent else not math.isfinite(target)):
        allowed = "a number above 0 and up to 1, such as 0.9" if measure.percent else "a finite number"
        raise UserError(f"target {target:g} is no {measure.chosen_in_words}; give {allowed}")
    if not 0 <= margin <= (1 if measure.percent else math.inf):
        example = measure.margin_in_words(0.01)
        limits = "0 to 1" if measure.percent else "0 or more"
        everything = "1" if measure.percent else "inf"
        raise UserError(
            f"margin {margin:g} is no difference of {measure.words}; give {limits}, such as 0.01 for {example}, or "
            f"{everything} for any"
        )


def not_reached(found: Comparison) -> list[str]:
    """Labels of the settings that have runs to compare and no gain, since they are not within the margin."""
    return [r.setting.label for r in found.results if r.gain.target and not r.gain.within]


def gain_curves(found: Comparison, skip: int, cost: str = "num_bytes") -> dict[int, Curve]:
    """The gain in bytes, or in simulated `seconds`, against the metric of every setting but the first that has one and
    is within the margin, by its place. Values that some run reaches within `skip` evaluations are left out, if any are
    left then."""
    curves = {
        i: gain_curve(result.pairing, skip, cost) or gain_curve(result.pairing, cost=cost)
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


def _not_finite(runs: Sequence[RunFolder], measure: Measure) -> list[str]:
    """Warnings of runs in which the metric is not finite somewhere."""
    warnings = []
    for run in runs:
        for key in dict.fromkeys((measure.chooses, measure.reports)):
            every = run.logged.get(key, np.zeros(0, bool))
            finite = len(evaluations(run, key)[0])
            if finite == np.sum(every):
                continue
            last = run.last(key)
            ends = "; its last is not, so it has no final value" if last is not None and math.isnan(last) else ""
            said = f"{key} is finite at {finite} of {np.sum(every)} evaluations, which are compared alone"
            warnings.append(f"{run.path}: {said}{ends}" if finite else f"{run.path}: {key} is never finite, left out")
    return warnings


def _losses_of_tasks(runs: Sequence[RunFolder], measure: Measure) -> list[str]:
    """A warning of losses of several tasks, which are different functions."""
    tasks = sorted({_text_of_task(run) for run in runs})
    if len(tasks) < 2 or not (measure.metric == "loss" or measure.metric.endswith("_loss")):
        return []
    return [f"the runs have different tasks ({', '.join(tasks)}), so their losses are different functions"]


def _text_of_task(run: RunFolder) -> str:
    """The name of a run's task; runs without one were classifications."""
    return str((run.config or {}).get("task.name", "classification"))


def _result(
    setting: Setting, reference: Setting, target: float | None, smooth: int, margin: float, measure: Measure
) -> Result:
    finals = [found[-1] for run in setting.runs if len(found := _to_the_end(run, smooth, measure))]
    pairing = pair(setting, reference, smooth, measure)
    compiling = [number(run.summary.get("compile_seconds")) for run in setting.runs]
    timed = [run for run in setting.runs if simulated_seconds(run) is not None]
    return Result(
        setting=setting,
        pairing=pairing,
        gain=gain(pairing, target, margin),
        best=statistic(_best(run, smooth, measure) for run in setting.runs),
        final=statistic(finals),
        rounds=statistic(run.rounds[-1] for run in setting.runs),
        uplink_bytes=statistic(run.uplink_bytes[-1] for run in setting.runs),
        downlink_bytes=statistic(run.downlink_bytes[-1] for run in setting.runs),
        other_bytes={
            way: statistic(run.other_bytes[way][-1] if way in run.other_bytes else 0 for run in setting.runs)
            for way in OTHERS
            if any(way in run.other_bytes for run in setting.runs)
        },
        saving=statistic(number(run.summary.get("saving")) for run in setting.runs),
        seconds=statistic(number(run.summary.get("seconds", float(run.elapsed_seconds[-1]))) for run in setting.runs),
        training=statistic(
            float(run.elapsed_seconds[-1])
            for run, known in zip(setting.runs, compiling, strict=True)
            if math.isfinite(known)
        ),
        compiling=statistic(compiling),
        simulated=statistic(float(seconds[-1]) for run in timed if (seconds := simulated_seconds(run)) is not None),
        waiting=statistic(waiting_share(run) for run in timed),
        peak_rate=statistic(_last(run, "peak_rate", np.fmax.reduce) for run in timed),
        wasted_bytes=statistic(_last(run, "wasted_bytes") for run in timed),
    )


def _last(run: RunFolder, name: str, reduce: Callable[[np.ndarray], float] = lambda values: values[-1]) -> float:
    """The value of a metric at the end of a run, or another of all; NaN where it was not logged."""
    return float(reduce(run.metrics[name])) if name in run.metrics else math.nan


def _to_the_end(run: RunFolder, smooth: int, measure: Measure) -> np.ndarray:
    """The smoothed metric on test rows; nothing of a run at whose last evaluation it is not finite."""
    last = run.last(measure.reports)
    return evaluations(run, measure.reports, smooth)[1] if last is not None and math.isfinite(last) else np.zeros(0)


def _best(run: RunFolder, smooth: int, measure: Measure) -> float:
    """The metric on test rows at the evaluation at which the one that chooses was best; NaN if there is none."""
    found, chooses = evaluations(run, measure.chooses, smooth)
    tested, test = evaluations(run, measure.reports, smooth)
    if not len(found):
        return math.nan
    best = int(found[np.argmax(measure.sign * chooses)])
    return float(dict(zip(tested.tolist(), test, strict=True)).get(best, math.nan))


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
