"""The type of callbacks, and the metric that one watches."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax8.directions import AUTO, CHOICES, CLASSIFICATION, DIRECTIONS, HIGHER, Measures, direction_of
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.types import Variables

Memory = dict[str, Any]
"""Memory of a callback from line to line, of JSON types, since checkpoints hold it."""


class Moment(NamedTuple):
    """Argument of a callback: a line of the log, right after it was written."""

    round: int
    line: Mapping[str, Any]
    """The round's metrics, with those of its evaluation if it was evaluated."""
    evaluated: bool
    """Whether it is a round of `eval_every`, or the last: there decisions are taken."""
    model: Callable[[], Variables] | None
    """Gives the global model after this round. It is there where the global model or clients' own are evaluated, and
    None elsewhere: which other rounds end a call depends on the clock."""
    folder: Path | None
    """The run's workdir, if it has one."""
    complete: bool = True
    """Whether each kind of evaluation, of the global model and of clients' own, was due at least once."""


class Decision(NamedTuple):
    """Result of a callback. It takes effect at the next round that is evaluated, this one included, and so does not
    depend on the number of rounds in one dispatch."""

    memory: Memory
    stop: str = ""
    """Reason to end the run; empty: it goes on."""
    step_scale: float | None = None
    """Factor on every step of the clients from then on; None: as before."""


class Callback(NamedTuple):
    """A function of the lines of a run with a memory of its own."""

    step: Callable[[Memory, Moment], Decision]
    """Called for every line, in order of rounds, by process 0 alone."""
    memory: Mapping[str, Any] = {}
    """Before the first line."""
    reads: tuple[str, ...] = ()
    """Names of the metrics that it decides by."""
    scales: bool = False
    """Whether it may scale the clients' steps: the factor is then an argument of the compiled program."""
    writes: bool = False
    """Whether it needs a workdir."""


class Watched(NamedTuple):
    """A metric, and which of its values are better."""

    metric: str
    sign: float
    """1 where higher is better, -1 where lower is."""
    min_delta: float = 0.0
    """Least improvement that counts."""

    def read(self, moment: Moment, memory: Memory) -> float | None:
        """The metric at this moment, NaN and infinity included; None on a line without it.

        UserError once everything was evaluated, if no line up to there had the metric: it has another name.
        """
        value = moment.line.get(self.metric)
        if isinstance(value, int | float):
            return float(value)
        if moment.evaluated and moment.complete and "best" not in memory:
            known = [name for name, v in moment.line.items() if isinstance(v, int | float)]
            raise UserError(
                f"callback: no {self.metric!r} up to the evaluation of round {moment.round}; logged are "
                f"{', '.join(sorted(known))}{suggest(self.metric, known)}"
            )
        return None

    def better(self, value: float, best: float | None) -> bool:
        """Whether a value is finite and better than the best so far by more than `min_delta`."""
        if not math.isfinite(value):
            return False
        return best is None or self.sign * (value - best) > self.min_delta

    def noted(self, value: float, memory: Memory, round_number: int) -> Memory:
        """The memory with this value taken in: `best`, its `round`, and the number of values `since` that were no
        better."""
        best = memory.get("best")
        if self.better(value, best):
            return {**memory, "best": value, "round": round_number, "since": 0}
        return {**memory, "best": best, "since": memory.get("since", 0) + 1}


def watched(
    metric: str | None,
    direction: str,
    part: str,
    min_delta: float = 0.0,
    measures: Measures = CLASSIFICATION,
) -> Watched:
    """The metric that a callback goes by.

    Args:
      metric: a key of `metrics.jsonl`, or the name of a metric, such as `mae`, which is then that on the `part`; None:
        the run's first metric on the `part`.
      direction: `higher`, `lower`, or `auto`: by the metric's name.
      part: `validation` where the run has a validation part, else `test`.
      min_delta: see `Watched`.
      measures: the run's first metric, and directions that its task declares.

    Raises:
      UserError: for test rows where there is a validation part, validation rows where there is none, and where the
        direction is not known.
    """
    metric = metric or measures.metric
    if metric in measures.directions or metric in DIRECTIONS or metric == measures.metric:
        metric = f"{part}_{metric}"
    if direction not in CHOICES:
        raise UserError(f"direction must be one of {', '.join(CHOICES)}; got {direction!r}")
    if not 0 <= min_delta < math.inf:
        raise UserError(f"min_delta must be at least 0 and finite; got {min_delta}")
    if part == "validation" and "test_" in metric:
        raise UserError(
            f"metric {metric!r} is of test rows, but there is a validation part, so that test rows are for reporting "
            f"alone; take {metric.replace('test_', 'validation_')!r}"
        )
    if part == "test" and "validation_" in metric:
        raise UserError(f"metric {metric!r} needs a validation part: set --config.validation=0.1")
    direction = direction_of(metric, measures.directions) if direction == AUTO else direction
    if not direction:
        raise UserError(f"whether {metric!r} is better high or low is not known: set direction to higher or lower")
    return Watched(metric, 1.0 if direction == HIGHER else -1.0, min_delta)


def check_patience(patience: int) -> None:
    """Raises UserError unless it is a whole number from 1."""
    if patience < 1:
        raise UserError(f"patience must be at least 1 evaluation; got {patience}")
