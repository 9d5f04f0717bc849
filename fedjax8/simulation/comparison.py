"""What every setting spends to reach a target accuracy, and its curves.

With `a` the target, `T(a)` the first evaluated round whose smoothed test accuracy reaches it and `bytes(T)`
all bytes sent up and down by then, the communication gain of a setting against the first one given is

    gain(a) = bytes_first(T_first(a)) / bytes(T(a)),

a ratio of means over seeds. Comparing at the same accuracy is how papers on 8-bit federated learning word
their gain; taking for `a` the lowest of the best accuracies, so that every run reaches it, is a project
choice.

NumPy and the standard library only.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.simulation.runs import Run, Setting, number, read_settings

SMOOTH_FROM = 50
"""Evaluations that every run must have for its accuracy to be smoothed unless told otherwise."""
SMOOTH_WINDOW = 5
"""Evaluations averaged over then."""
ROUNDING = 1e-7
"""A float32 accuracy of 0.9 is logged as 0.899999976: it counts as 0.9."""


class Statistic(NamedTuple):
    """Mean and sample standard deviation (NaN for one value) of `count` values."""

    mean: float
    spread: float
    count: int


class Result(NamedTuple):
    """What one setting spent and reached. A statistic over zero seeds is None."""

    setting: Setting
    reached: int
    """Number of seeds that reach the target; the next two are over those seeds."""
    rounds_to_target: Statistic | None
    bytes_to_target: Statistic | None
    gain: float | None
    """Bytes to target of the first setting over this one's; None unless all seeds of both reach it."""
    best_accuracy: Statistic | None
    final_accuracy: Statistic | None
    rounds: Statistic | None
    uplink_bytes: Statistic | None
    downlink_bytes: Statistic | None
    saving: Statistic | None
    seconds: Statistic | None


class Comparison(NamedTuple):
    """The results in the order in which the settings were first given."""

    results: tuple[Result, ...]
    target: float
    target_given: bool
    smooth: int
    warnings: tuple[str, ...]


class Curve(NamedTuple):
    """One setting's curve over the rounds that all its seeds evaluated, float64 `[T]` each."""

    x: np.ndarray
    mean: np.ndarray
    spread: np.ndarray
    """Sample standard deviation over seeds; NaN for one seed."""


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to `window - 1` before it; the first few have fewer to average.

    >>> moving_mean(np.array([0.0, 1.0, 2.0, 6.0]), 3).tolist()
    [0.0, 0.5, 1.0, 3.0]
    """
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def evaluations(run: Run, metric: str = "test_accuracy", smooth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Indices `[E]` of the lines with a finite `metric`, and its moving mean over them, float64 `[E]`."""
    values = run.metrics.get(metric, np.full(len(run.rounds), np.nan))
    (found,) = np.nonzero(np.isfinite(values))
    return found, moving_mean(values[found], smooth)


def total_bytes(run: Run) -> np.ndarray:
    """Bytes up and down by the end of each line's round, float64 `[T]` (exact below 2**53)."""
    both = zip(run.uplink_bytes, run.downlink_bytes, strict=True)
    return np.array([up + down for up, down in both], np.float64)


def curve(setting: Setting, x: str = "bytes", y: str = "test_accuracy", smooth: int = 1) -> Curve | None:
    """Mean and spread of `y` over seeds, against `bytes` (up and down), `rounds` or `seconds`.

    Seeds are lined up by round: each point is a round that every seed evaluated, at the mean `x` of the seeds
    there. None if there is no such round, or if `seconds` were not logged.
    """
    read: dict[str, Callable[[Run], np.ndarray]] = {
        "bytes": total_bytes,
        "rounds": lambda run: run.rounds.astype(np.float64),
        "seconds": lambda run: run.elapsed_seconds,
    }
    if x not in read:
        raise UserError(f"x={x!r}; allowed: {', '.join(read)}")
    points = []
    for run in setting.runs:
        found, values = evaluations(run, y, smooth)
        points.append({int(run.rounds[i]): (read[x](run)[i], v) for i, v in zip(found, values, strict=True)})
    rounds = sorted(set.intersection(*(set(p) for p in points)))
    table = np.array([[p[r] for r in rounds] for p in points]).reshape(len(points), len(rounds), 2)
    if not rounds or np.isnan(table[..., 0]).any():
        return None
    mean = table.mean(axis=0)
    spread = table[..., 1].std(axis=0, ddof=1) if len(points) > 1 else np.full(len(rounds), np.nan)
    return Curve(mean[:, 0], mean[:, 1], spread)


def statistic(values: Iterable[float]) -> Statistic | None:
    """Mean, sample standard deviation and count of the values that are finite; None if none is."""
    kept = np.array([v for v in values if math.isfinite(v)], np.float64)
    if not len(kept):
        return None
    return Statistic(float(kept.mean()), float(kept.std(ddof=1)) if len(kept) > 1 else math.nan, len(kept))


def compare_runs(
    paths: Iterable[str | os.PathLike], target: float | None = None, smooth: int | None = None
) -> Comparison:
    """What every setting spends to reach `target`, and in all.

    `target` in (0, 1] is a test accuracy; by default the lowest, over the runs, of the best smoothed test
    accuracy. `smooth` is how many evaluations, up to the current one, the accuracy is averaged over; by
    default 1, and 5 once every run has 50 evaluations. Raises `UserError` for a bad target or window,
    unreadable runs, or no evaluation at all.
    """
    if target is not None and not 0 < target <= 1:
        raise UserError(f"target {target:g} is no test accuracy; give a number above 0 and up to 1, such as 0.9")
    if smooth is not None and smooth < 1:
        raise UserError(f"smooth={smooth} evaluations; give 1 (no smoothing) or more")
    settings, warnings = read_settings(paths)
    runs = [run for setting in settings for run in setting.runs]
    counts = {run.path: len(evaluations(run)[0]) for run in runs}
    if not any(counts.values()):
        raise UserError("no run has a test_accuracy yet; wait for a first evaluation")
    warnings += [f"{path}: no test_accuracy yet" for path, count in counts.items() if not count]
    if smooth is None:
        smooth = SMOOTH_WINDOW if min(counts.values()) >= SMOOTH_FROM else 1
    chosen = target
    if chosen is None:
        chosen = min(float(evaluations(run, smooth=smooth)[1].max()) for run in runs if counts[run.path])
    evaluated = [run.rounds[evaluations(run)[0]] for run in runs if counts[run.path] > 2]
    warnings += [note for setting in settings for note in _unequal_lengths(setting)]
    intervals = {int(np.median(np.diff(rounds))) for rounds in evaluated}
    if len(intervals) > 1:
        warnings.append(
            f"some runs are evaluated every {min(intervals)} rounds, some every {max(intervals)}: "
            "rounds and bytes to target are known to that interval only"
        )
    results: list[Result] = []
    for setting in settings:
        results.append(_result(setting, chosen, smooth, results[0] if results else None))
    warnings += _target_warnings(results)
    return Comparison(tuple(results), chosen, target is not None, smooth, tuple(warnings))


def _unequal_lengths(setting: Setting) -> list[str]:
    ends = [int(run.rounds[-1]) for run in setting.runs]
    if min(ends) == max(ends):
        return []
    return [
        f"{setting.label}: its seeds end at rounds {min(ends)} to {max(ends)}; curves stop where the first "
        "one does, and totals are means over runs of unequal length"
    ]


def _result(setting: Setting, target: float, smooth: int, first: Result | None) -> Result:
    """One setting's numbers; `first` is None for the first setting, which is its own reference."""
    rounds, spent, best, final = [], [], [], []
    for run in setting.runs:
        found, accuracy = evaluations(run, smooth=smooth)
        hits = found[accuracy >= target - ROUNDING]
        rounds += [run.rounds[i] for i in hits[:1]]
        spent += [total_bytes(run)[i] for i in hits[:1]]
        best += [accuracy.max()] if len(accuracy) else []
        final += list(accuracy[-1:])
    bytes_to_target = statistic(spent)
    reference = bytes_to_target if first is None else first.bytes_to_target
    complete = len(spent) == len(setting.runs) and (first is None or first.reached == len(first.setting.runs))
    gain = reference.mean / bytes_to_target.mean if complete and bytes_to_target.mean and reference.mean else None
    return Result(
        setting=setting,
        reached=len(spent),
        rounds_to_target=statistic(rounds),
        bytes_to_target=bytes_to_target,
        gain=gain,
        best_accuracy=statistic(best),
        final_accuracy=statistic(final),
        rounds=statistic(run.rounds[-1] for run in setting.runs),
        uplink_bytes=statistic(run.uplink_bytes[-1] for run in setting.runs),
        downlink_bytes=statistic(run.downlink_bytes[-1] for run in setting.runs),
        saving=statistic(number(run.summary.get("saving")) for run in setting.runs),
        seconds=statistic(number(run.summary.get("seconds", float(run.elapsed_seconds[-1]))) for run in setting.runs),
    )


def _target_warnings(results: Sequence[Result]) -> list[str]:
    first = results[0]
    if first.reached < len(first.setting.runs) and len(results) > 1:
        return [
            f"the first setting ({first.setting.label}) does not reach the target with every seed, "
            "so no gain is given; lower --target or give another setting first"
        ]
    return [
        f"{r.setting.label}: {r.reached} of {len(r.setting.runs)} seeds reach the target, so no gain is given"
        for r in results
        if 0 < r.reached < len(r.setting.runs)
    ]
