"""The metric by which runs are compared: its keys in the log, its direction, and differences of it in words.

Unless one is given it is the first metric of the runs' own task (`RunFolder.measures`). Standard library only.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fedjax8.directions import AUTO, CHOICES, LOWER, direction_of, in_words, is_bounded, is_percent, readable
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.results.runs import RunFolder

PARTS = ("test", "validation")
"""Rows whose metric may choose."""


class Measure(NamedTuple):
    """A metric, and its keys in `metrics.jsonl`."""

    metric: str = "accuracy"
    """Without the rows in front; the whole key where it is of other rows, such as `train_loss`."""
    lower: bool = False
    """Whether lower values are better."""
    chooses: str = "test_accuracy"
    """Key by which targets and best rounds are chosen."""
    reports: str = "test_accuracy"
    """Key of what is reported: that of test rows."""

    @property
    def sign(self) -> float:
        """1 where higher values are better, -1 where lower ones are: the metric times it is a score."""
        return -1.0 if self.lower else 1.0

    @property
    def words(self) -> str:
        """The metric's name for people."""
        return in_words(self.metric)

    @property
    def chosen_in_words(self) -> str:
        """The metric that chooses, with its rows, for people."""
        return in_words(self.chooses)

    @property
    def reported_in_words(self) -> str:
        """The metric that is reported, with its rows, for people."""
        return in_words(self.reports)

    @property
    def title(self) -> str:
        """The metric's name at the beginning of a heading."""
        return self.words[0].upper() + self.words[1:]

    @property
    def percent(self) -> bool:
        """Whether values are written in percent."""
        return is_percent(self.metric)

    def distance(self, margin: float, best: float) -> float:
        """The difference that a margin allows below a best value: the margin itself for metrics of at most 1, else that
        share of the value."""
        return margin if is_bounded(self.metric) else margin * abs(best)

    def margin_in_words(self, margin: float) -> str:
        """A margin for people.

        >>> Measure().margin_in_words(0.01), Measure("auc").margin_in_words(0.01), Measure("mae").margin_in_words(0.025)
        ('1 point', '0.01', '2.5%')
        """
        text = f"{100 * margin:.3g}"
        if self.percent:
            return f"{text} point{'s' * (text != '1')}"
        return f"{margin:.3g}" if is_bounded(self.metric) else f"{text}%"

    def readable(self, value: float, spread: float = float("nan")) -> str:
        """A value of the metric for people."""
        return readable(self.metric, value, spread)


ACCURACY = Measure()


def measure_of(
    runs: Sequence[RunFolder], metric: str | None = None, direction: str = AUTO, on: str = "test"
) -> Measure:
    """The metric by which to compare runs.

    Args:
      runs: those to compare.
      metric: its name, such as `mae`, or a key of `metrics.jsonl`, such as `train_loss`; None: the first metric of the
        runs' own task.
      direction: `higher`, `lower`, or `auto`: by the runs' task, or the metric's name.
      on: `test` or `validation` rows, which choose.

    Raises:
      UserError: for runs of different first metrics if none is given, a metric that no run has, and a direction that
        is not known or declared in two ways.
    """
    if on not in PARTS:
        raise UserError(f"on={on!r}; give one of {', '.join(PARTS)}")
    if direction not in CHOICES:
        raise UserError(f"direction={direction!r}; give one of {', '.join(CHOICES)}")
    for part in PARTS:
        if metric and metric.startswith(f"{part}_"):
            metric, on = metric.removeprefix(f"{part}_"), "validation" if part == "validation" else on
    there = logged(runs, on)
    if metric is None:
        metric = _first_of_all(runs, there)
    elif metric not in there.values() and there:
        hold = "; for validation rows run with --config.validation=0.1" if on == "validation" else ""
        raise UserError(
            f"no run has the metric {metric!r} on {on} rows; there are {', '.join(sorted(set(there.values())))}"
            f"{suggest(metric, there.values())}{hold}"
        )
    found = _direction(runs, metric) if direction == AUTO else direction
    key = f"{on}_{metric}"
    if key not in there and metric in there:
        return Measure(metric, found == LOWER, metric, metric)
    return Measure(metric, found == LOWER, key, f"test_{metric}")


def logged(runs: Sequence[RunFolder], on: str) -> Mapping[str, str]:
    """Keys of metrics that some run logged, and the names by which they are asked for: of all on the rows that choose,
    without these in front; of others, but for other evaluations, those with a direction."""
    keys = dict.fromkeys(key for run in runs for key in run.metrics)
    evaluated = {key: key.removeprefix(f"{on}_") for key in keys if key.startswith(f"{on}_")}
    others = [key for key in keys if not key.startswith(tuple(f"{part}_" for part in PARTS))]
    return evaluated | {key: key for key in others if any(direction_of(key, run.measures.directions) for run in runs)}


def _first_of_all(runs: Sequence[RunFolder], there: Mapping[str, str]) -> str:
    """The first metric of all runs' tasks."""
    firsts: dict[str, str] = {}
    for run in runs:
        firsts.setdefault(run.measures.metric, str(run.path))
    if len(firsts) > 1:
        differing = ", ".join(f"{path} by {metric}" for metric, path in firsts.items())
        shared = sorted({name for key, name in there.items() if all(key in run.metrics for run in runs)})
        raise UserError(
            f"the runs are judged by different metrics ({differing}); give one by --metric; all have "
            f"{', '.join(shared) or 'none in common'}"
        )
    return next(iter(firsts))


def _direction(runs: Sequence[RunFolder], metric: str) -> str:
    """The direction of a metric that all runs' tasks agree on."""
    found = {direction_of(metric, run.measures.directions) for run in runs} - {""}
    if len(found) > 1:
        raise UserError(f"{metric} is better high in some runs' task, low in others'; give --direction=higher or lower")
    if not found:
        raise UserError(f"whether {metric} is better high or low is not known; give --direction=higher or lower")
    return found.pop()
