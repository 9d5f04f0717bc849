"""Curves of runs: evaluations as arrays, smoothed, and their mean over the seeds of a setting.

NumPy and the standard library only.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.results.measure import ACCURACY, Measure
from fedjax8.results.runs import RunFolder, Setting


class Statistic(NamedTuple):
    """Mean and sample standard deviation (NaN for one value) of `count` values."""

    mean: float
    spread: float
    count: int  # type: ignore[assignment]  # takes the place of tuple.count


class Curve(NamedTuple):
    """Mean and spread over seeds (NaN for one seed) at each `x`, float64 `[T]` each."""

    x: np.ndarray
    mean: np.ndarray
    spread: np.ndarray


class Trajectory(NamedTuple):
    """The evaluations of one run, in order of rounds."""

    rounds: np.ndarray
    """int64 `[E]`."""
    num_bytes: np.ndarray
    """Up and down by the end of that round, float64 `[E]`."""
    score: np.ndarray
    """The smoothed metric, with its sign turned where lower values are better: more is better, float64 `[E]`."""
    seconds: np.ndarray | None = None
    """Simulated seconds by the end of that round, float64 `[E]`; None for a run without a clock."""


def moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to `window - 1` before it; the first few have fewer to average.

    >>> moving_mean(np.array([0.0, 1.0, 2.0, 6.0]), 3).tolist()
    [0.0, 0.5, 1.0, 3.0]
    """
    if window == 1:
        return np.array(values, np.float64)
    return np.array([values[max(0, i - window + 1) : i + 1].mean() for i in range(len(values))])


def evaluations(run: RunFolder, metric: str, smooth: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Indices `[E]` of the lines with a finite `metric`, and its moving mean over them, float64 `[E]`."""
    values = run.metrics.get(metric, np.full(len(run.rounds), np.nan))
    (found,) = np.nonzero(np.isfinite(values))
    return found, moving_mean(values[found], smooth)


def total_bytes(run: RunFolder) -> np.ndarray:
    """Bytes of all directions by the end of each line's round, float64 `[T]` (exact below 2**53)."""
    ways = zip(run.uplink_bytes, run.downlink_bytes, *run.other_bytes.values(), strict=True)
    return np.array([sum(of_line) for of_line in ways], np.float64)


def simulated_seconds(run: RunFolder) -> np.ndarray | None:
    """Simulated seconds by the end of each line's round, float64 `[T]`; None for a run without a clock."""
    found = run.metrics.get("simulated_seconds")
    return found if found is not None and bool(np.isfinite(found).all()) else None


def waiting_share(run: RunFolder) -> float:
    """The share of the run's simulated seconds that clients wait: the mean of its rounds' shares, by their seconds.

    NaN for a run without a clock.
    """
    seconds, shares = simulated_seconds(run), run.metrics.get("waiting_share")
    if seconds is None or shares is None:
        return math.nan
    of_lines = np.diff(seconds, prepend=0.0)
    known = np.isfinite(shares) & (of_lines > 0)
    return float(np.average(shares[known], weights=of_lines[known])) if known.any() else math.nan


def trajectory(run: RunFolder, smooth: int = 1, measure: Measure = ACCURACY) -> Trajectory:
    """The run's evaluations of the metric that chooses."""
    found, values = evaluations(run, measure.chooses, smooth)
    seconds = simulated_seconds(run)
    of_evaluations = None if seconds is None else seconds[found]
    return Trajectory(run.rounds[found], total_bytes(run)[found], measure.sign * values, of_evaluations)


def curve(setting: Setting, x: str = "bytes", y: str = "test_accuracy", smooth: int = 1) -> Curve | None:
    """Mean and spread of `y` over seeds, against `bytes` (up and down), `rounds`, `seconds` or `simulated_seconds`.

    Seeds are lined up by round: each point is a round that every seed evaluated, at the mean `x` of the seeds
    there. None if there is no such round, or if seconds of the kind were not logged.
    """
    read: dict[str, Callable[[RunFolder], np.ndarray]] = {
        "bytes": total_bytes,
        "rounds": lambda run: run.rounds.astype(np.float64),
        "seconds": lambda run: run.elapsed_seconds,
        "simulated_seconds": lambda run: run.metrics.get("simulated_seconds", np.full(len(run.rounds), np.nan)),
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
