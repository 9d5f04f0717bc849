"""Schedules of a run: its end, evaluations and checkpoints, and the number of rounds in one dispatch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from fedjax8.errors import UserError

CALL_SECONDS = 1.0
"""Seconds that a user may wait for an answer to Ctrl-C, or for the progress bar to move, where rounds are shorter."""


class Schedule(NamedTuple):
    """End, evaluations and checkpoints of a run, in rounds."""

    rounds: int
    eval_every: int
    checkpoint_every: int
    """0 for checkpoints by time alone."""
    on_nan: str = "drop"
    """`error` ends the run where a contribution was not finite; `drop` leaves it out and counts it."""
    clients_every: int = 0
    """Between evaluations of clients' own models; 0 for never."""
    checkpoint_seconds: float = 0.0
    """Seconds after a checkpoint, from which on the next is due; 0 for never."""

    def due(self, every: int, done: int) -> bool:
        """Whether an evaluation of this period, 0 for never, comes after `done` rounds: its multiples and the last."""
        return every > 0 and (done % every == 0 or done == self.rounds)

    def save_due(self, done: int) -> bool:
        """Whether a checkpoint comes after `done` rounds, whatever the time."""
        return self.checkpoint_every > 0 and done % self.checkpoint_every == 0

    def check(self, line: Mapping[str, Any]) -> None:
        """Raises `UserError` if a round's line is one that ends the run."""
        if self.on_nan == "error" and line.get("rejected"):
            raise UserError(
                f"round {line['round']}: the server's step gave numbers that are not finite or too large; that ends "
                "the run by config.on_nan=error; try a smaller server learning rate, or --config.on_nan=drop, which "
                "leaves everything as it was before such a round"
            )
        if self.on_nan == "error" and line.get("excluded"):
            raise UserError(
                f"round {line['round']}: {line['excluded']} contributions were not finite or not admitted"
                f"{who_of(line)}; that ends the run by config.on_nan=error; try a smaller "
                "--config.client.optimizer.learning_rate, or --config.on_nan=drop, which leaves them out"
            )


def who_of(line: Mapping[str, Any]) -> str:
    """` (clients 3, 17 and 2 more)`: the clients that a round excluded; empty if none."""
    names = [str(client) for client in line.get("excluded_clients", ())]
    unnamed = line["excluded"] - len(names)
    more = f" and {unnamed} more" if unnamed > 0 else ""
    return f" (client{'s' * (len(names) > 1)} {', '.join(names)}{more})" if names else ""


class Pace:
    """Number of rounds in one dispatch: as many as end within `CALL_SECONDS`, in powers of two, and none beyond
    the next round that is evaluated or saved. A signal is answered, and progress shown, between calls."""

    def __init__(self, schedule: Schedule):
        self._schedule, self._most = schedule, 1
        self._compiled = False

    def count(self, done: int) -> int:
        """Rounds of the call after `done` rounds; 0 at the end."""
        schedule = self._schedule
        every = (schedule.eval_every, schedule.checkpoint_every, schedule.clients_every)
        return min(self._most, schedule.rounds - done, *(period - done % period for period in every if period))

    def learn(self, rounds: int, seconds: float) -> None:
        """Takes in the seconds of a call; the first one compiles and does not count."""
        if self._compiled:
            fitting = max(1, int(CALL_SECONDS * rounds / max(seconds, 1e-9)))
            self._most = 1 << (fitting.bit_length() - 1)
        self._compiled = True
