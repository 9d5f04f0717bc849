"""Communication gain: bytes, rounds and simulated seconds of a reference to a target value of a metric over those of a
setting.

With `T(a)` the first evaluated round whose smoothed metric, the test accuracy unless another is given, reaches `a`
(from below, or from above where lower values are better), and `bytes(T)` all bytes sent up and down by then,

    gain in bytes(a) = bytes_reference(T_reference(a)) / bytes(T(a)),   gain in rounds(a) = T_reference(a) / T(a),

and the gain in time likewise, by the simulated seconds at the end of that round, where all runs compared have a clock.

**Seeds in common.** A run is compared with the run of the reference that has its seed, so that both start from the
same model and data; the gain is the mean over these pairs, its spread their sample standard deviation. Unless a
target is given, each pair has its own: the worse of its two best, the best that both reach. A setting that
trains badly lowers `a` for itself alone. Runs whose seed the other setting lacks are left out.

**Within a margin.** Every run reaches a low accuracy early, and one that sends little reaches it for few bytes: a
setting that stays at 0.42 would "gain" hundreds of times on a reference that ends at 0.98. So a gain counts only where
the best value of the setting, mean over the runs compared, is worse than that of the reference by at most a margin: a
hundredth (`MARGIN`) unless another is given, of 1 for metrics of at most 1 (one point of accuracy), else of the
reference's value. Otherwise there is none, whatever target is asked for.

**No seed in common.** Then every run of one setting could be paired with every run of the other, and no pairing is
better than another. `a`, unless given, is the worst of the best values of all runs of both settings, which all of them
reach; the gain is a ratio of means over seeds, and has no spread.

Papers on 8-bit federated learning state the gain at equal accuracy; the choice of `a`, and other metrics, are ours.
NumPy and the standard library only.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax8.results.curves import Curve, Statistic, Trajectory, statistic, trajectory
from fedjax8.results.measure import ACCURACY, Measure
from fedjax8.results.runs import Setting

ROUNDING = 1e-7
"""A float32 accuracy of 0.9 is logged as 0.899999976: it counts as 0.9. Of metrics above 1, a share of their value."""
MARGIN = 0.01
"""Largest distance of best values from the reference's at which a setting has a gain: one point of accuracy."""


class Pairing(NamedTuple):
    """The evaluated runs of a setting and those of its reference.

    If `paired`, the two have equal length and equal seeds in the same places.
    """

    setting: tuple[Trajectory, ...]
    reference: tuple[Trajectory, ...]
    paired: bool
    measure: Measure = ACCURACY
    """The metric whose scores they are."""


class Reached(NamedTuple):
    """Costs of a run to values of its score, float64 of their shape; NaN where it does not reach one."""

    rounds: np.ndarray
    num_bytes: np.ndarray
    seconds: np.ndarray
    """Simulated; NaN without a clock."""


class Gain(NamedTuple):
    """Rounds and bytes of a setting and its reference to a value `a` of the metric. Statistics of no runs are None."""

    compared: int
    """Runs of the setting that were compared."""
    reached: int
    """Number of them that reach `a`; `rounds` and `num_bytes` are over those."""
    target: Statistic | None
    """`a` over the pairs."""
    rounds: Statistic | None
    num_bytes: Statistic | None
    reference_rounds: Statistic | None
    reference_bytes: Statistic | None
    in_rounds: Statistic | None
    """None unless every run compared, of both settings, reaches `a`, and the setting is within the margin."""
    in_bytes: Statistic | None
    paired: bool
    within: bool = True
    """Whether the best value, mean over the runs compared, is within the margin of the reference's."""
    seconds: Statistic | None = None
    """Simulated, as `num_bytes`; those of the reference and the gain likewise. None where a run has no clock."""
    reference_seconds: Statistic | None = None
    in_seconds: Statistic | None = None


def pair(setting: Setting, reference: Setting, smooth: int = 1, measure: Measure = ACCURACY) -> Pairing:
    """Their runs in which the metric was evaluated, by the seeds in common, or all of them if there is none."""
    ours, theirs = _by_seed(setting, smooth, measure), _by_seed(reference, smooth, measure)
    common = [seed for seed in ours if seed in theirs]
    if not common:
        return Pairing(tuple(ours.values()), tuple(theirs.values()), False, measure)
    return Pairing(tuple(ours[seed] for seed in common), tuple(theirs[seed] for seed in common), True, measure)


def reach(run: Trajectory, score: np.ndarray | float) -> Reached:
    """First evaluated round that reaches each `score`, bytes and simulated seconds by then."""
    allowed = ROUNDING * np.maximum(1.0, np.abs(score))
    first = np.searchsorted(np.maximum.accumulate(run.score), np.asarray(score) - allowed)
    seconds = np.full(len(run.rounds), np.nan) if run.seconds is None else run.seconds
    return Reached(*(np.append(cost, np.nan)[first] for cost in (run.rounds, run.num_bytes, seconds)))


def within(pairing: Pairing, margin: float = MARGIN) -> bool:
    """Whether the setting's mean best score is at least the reference's less the margin; False without runs."""
    setting, reference, _, measure = pairing
    if not setting or not reference:
        return False
    ours, theirs = _best(setting).mean(), _best(reference).mean()
    return bool(ours >= theirs - measure.distance(margin, theirs) - ROUNDING * max(1.0, abs(theirs)))


def gain(pairing: Pairing, target: float | None = None, margin: float = MARGIN) -> Gain:
    """The gain at a value `target` of the metric, or at the best that the runs compared have in common; none unless the
    setting is `within` the margin of its reference."""
    setting, reference, paired, measure = pairing
    if not setting or not reference:
        return Gain(len(setting), 0, None, None, None, None, None, None, None, paired)
    ours, theirs = _best(setting), _best(reference)
    if target is not None:
        ours, theirs = np.full_like(ours, measure.sign * target), np.full_like(theirs, measure.sign * target)
    elif paired:
        ours = theirs = np.minimum(ours, theirs)
    else:
        lowest = min(ours.min(), theirs.min())
        ours, theirs = np.full_like(ours, lowest), np.full_like(theirs, lowest)
    spent = np.array([reach(run, a) for run, a in zip(setting, ours, strict=True)])
    reference_spent = np.array([reach(run, a) for run, a in zip(reference, theirs, strict=True)])
    ratios = _ratios(spent, reference_spent, paired)
    close = within(pairing, margin)
    in_rounds, in_bytes, in_seconds = (statistic(r) if close and np.isfinite(r).all() else None for r in ratios.T)
    timed = not any(run.seconds is None for run in setting + reference)
    return Gain(
        compared=len(setting),
        reached=int(np.isfinite(spent[:, 0]).sum()),
        target=statistic(measure.sign * (ours if paired else ours[:1])),
        rounds=statistic(spent[:, 0]),
        num_bytes=statistic(spent[:, 1]),
        reference_rounds=statistic(reference_spent[:, 0]),
        reference_bytes=statistic(reference_spent[:, 1]),
        in_rounds=in_rounds,
        in_bytes=in_bytes,
        paired=paired,
        within=close,
        seconds=statistic(spent[:, 2]) if timed else None,
        reference_seconds=statistic(reference_spent[:, 2]) if timed else None,
        in_seconds=in_seconds,
    )


def gain_curve(pairing: Pairing, skip: int = 0, cost: str = "num_bytes") -> Curve | None:
    """Gain in bytes, or another `cost` of `Reached`, against `a`, up to the best value that all runs compared reach;
    None if there is none.

    Exact: the gain can change only just beyond a value that is the best so far of some run, and these are the
    points, from the worst to the best. Between two points it is that of the better one; before the first it is
    constant. Values that some run reaches within its first `skip` evaluations are left out.
    """
    setting, reference, paired, measure = pairing
    if not setting or not reference:
        return None
    runs = setting + reference
    records = np.unique(np.concatenate([np.maximum.accumulate(run.score) for run in runs]))
    x = records[records <= _best(runs).min()]
    x = x[x > max(run.score[:skip].max() for run in runs)] if skip else x
    ours, theirs = (np.array([getattr(reach(run, x), cost) for run in side]) for side in (setting, reference))
    ratios = _ratios(ours, theirs, paired)
    kept = np.isfinite(ratios).all(axis=0)
    if not kept.any():
        return None
    x, ratios = x[kept], ratios[:, kept]
    spread = ratios.std(axis=0, ddof=1) if len(ratios) > 1 else np.full(len(x), np.nan)
    return Curve(measure.sign * x, ratios.mean(axis=0), spread)


def _by_seed(setting: Setting, smooth: int, measure: Measure) -> dict[str, Trajectory]:
    """Runs with an evaluation, by seed; a run whose seed is unknown has a key of its own."""
    keys = [str(run.path) if run.seed is None else json.dumps(run.seed) for run in setting.runs]
    found = zip(keys, (trajectory(run, smooth, measure) for run in setting.runs), strict=True)
    return {key: run for key, run in found if len(run.rounds)}


def _best(runs: Sequence[Trajectory]) -> np.ndarray:
    return np.array([run.score.max() for run in runs])


def _ratios(ours: np.ndarray, theirs: np.ndarray, paired: bool) -> np.ndarray:
    """Theirs over ours: a row per pair, or the one row of means; NaN where either is missing or zero."""
    if not paired:
        ours, theirs = ours.mean(axis=0, keepdims=True), theirs.mean(axis=0, keepdims=True)
    defined = (ours > 0) & (theirs > 0)
    return np.where(defined, theirs / np.where(defined, ours, 1.0), np.nan)
