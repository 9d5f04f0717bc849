"""Callbacks of one run at work: the lines they see, their decisions, and their part of checkpoints.

Process 0 calls them and sends their decisions to the others. A decision is taken at the end of a call, at a round that
is evaluated.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax8.callbacks.base import Callback, Decision, Moment
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.errors import UserError
from fedjax8.hosts import Hosts
from fedjax8.running.schedule import Schedule
from fedjax8.running.workdir import json_ready


class Standing(NamedTuple):
    """Standing of a run's callbacks after a line, as JSON types."""

    names: list[str]
    memories: list[dict[str, Any]]
    reasons: list[str]
    """Reason of each callback that ends the run; empty for the others."""
    scales: list[float]
    """Factor of each callback on the clients' steps."""
    step_scale: float | None
    """Factor in use on the clients' steps; None if no callback scales them."""
    stopped_by: dict[str, Any]
    """`callback`, `round` and `reason` of a run that a callback ended; else empty."""


class Deciding:
    """Callbacks of one run; without any it does nothing."""

    def __init__(
        self, callbacks: Sequence[tuple[str, Callback]], simulation: Simulation, folder: Path | None, hosts: Hosts
    ):
        names = [name for name, _ in callbacks]
        self._callbacks = [callback for _, callback in callbacks]
        self._simulation, self._folder, self._hosts = simulation, folder, hosts
        scaled = any(callback.scales for callback in self._callbacks)
        memories = [dict(callback.memory) for callback in self._callbacks]
        self._now = Standing(names, memories, [""] * len(names), [1.0] * len(names), 1.0 if scaled else None, {})
        self.notes = self._on_test_rows(names)
        """Remarks for the user."""
        for name, callback in callbacks:
            if callback.writes and folder is None:
                raise UserError(f"callback {name} writes files and needs a --workdir")

    def _on_test_rows(self, names: Sequence[str]) -> list[str]:
        by_test = zip(names, self._callbacks, strict=True)
        users = [name for name, callback in by_test if any("test_" in metric for metric in callback.reads)]
        if not users:
            return []
        return [
            f"{', '.join(users)} {'go' if len(users) > 1 else 'goes'} by test rows, since there is no validation part "
            "(--config.validation=0.1): test metrics of this run are chosen, not only reported"
        ]

    @property
    def stopped_by(self) -> Mapping[str, Any]:
        """`callback`, `round` and `reason` if a callback ended the run; else empty."""
        return self._now.stopped_by

    def goes_on(self, state: SimulationState, schedule: Schedule) -> bool:
        """Whether there are rounds to come: fewer are done than scheduled, and no callback has ended the run."""
        return state.round < schedule.rounds and not self.stopped_by

    def facts(self) -> dict[str, float]:
        """Values for the lines of the rounds to come."""
        return {} if self._now.step_scale is None else {"step_scale": self._now.step_scale}

    def saved(self) -> dict[str, Any]:
        """The callbacks' part of a checkpoint."""
        return self._now._asdict() if self._callbacks else {}

    def resume(self, saved: Mapping[str, Any], state: SimulationState) -> SimulationState:
        """The state to go on from; `saved` is the callbacks' part of its checkpoint, empty if there is none."""
        if saved and saved["names"] == self._now.names:
            self._now = Standing(**saved)
        elif state.round and self._callbacks:
            self.notes.append(f"the checkpoint of round {state.round} is of other callbacks: these begin there")
        return state._replace(step_scale=self._now.step_scale)

    def see(self, lines: Sequence[Mapping[str, Any]], state: SimulationState, schedule: Schedule) -> SimulationState:
        """The state to go on from, after the callbacks saw the lines of a call that ended at `state`."""
        if not self._callbacks or not lines:
            return state
        self._now = Standing(**self._hosts.ask(lambda: self._after(lines, state, schedule)._asdict()))
        return state._replace(step_scale=self._now.step_scale)

    def _after(self, lines: Sequence[Mapping[str, Any]], state: SimulationState, schedule: Schedule) -> Standing:
        now = self._now
        for line in lines:
            number = line["round"]
            evaluated = schedule.due(schedule.eval_every, number)
            # A model is there at the end of any call; where that is due to the clock it is not shown.
            shown = evaluated or schedule.due(schedule.clients_every, number)
            model = (lambda: self._simulation.variables(state)) if shown and number == state.round else None
            complete = number >= min(max(schedule.eval_every, schedule.clients_every), schedule.rounds)
            moment = Moment(number, line, evaluated, model, self._folder, complete)
            decisions = [
                _valid(name, callback, callback.step(dict(memory), moment))
                for name, callback, memory in zip(now.names, self._callbacks, now.memories, strict=True)
            ]
            reasons = [d.stop or reason for d, reason in zip(decisions, now.reasons, strict=True)]
            scales = [
                old if d.step_scale is None else d.step_scale for d, old in zip(decisions, now.scales, strict=True)
            ]
            now = now._replace(memories=[d.memory for d in decisions], reasons=reasons, scales=scales)
            if evaluated:
                now = _taken(now, number)
        return now


def _taken(now: Standing, number: int) -> Standing:
    """The standing with decisions up to an evaluation in force."""
    scale = None if now.step_scale is None else math.prod(now.scales)
    first = next((i for i, reason in enumerate(now.reasons) if reason), None)
    stopped = {} if first is None else {"callback": now.names[first], "round": number, "reason": now.reasons[first]}
    return now._replace(step_scale=scale, stopped_by=now.stopped_by or stopped)


def _valid(name: str, callback: Callback, decision: Decision) -> Decision:
    """The decision, with its memory as a checkpoint gives it back; UserError for an invalid one."""
    scale = decision.step_scale
    if scale is not None and not callback.scales:
        raise UserError(f"callback {name} scales the clients' steps, but says scales=False; make it with scales=True")
    if scale is not None and not 0 < scale < math.inf:
        raise UserError(f"callback {name}: step_scale must be above 0 and finite; got {scale}")
    try:
        return decision._replace(memory=json.loads(json.dumps(json_ready(decision.memory))))
    except TypeError as error:
        raise UserError(f"callback {name}: its memory must be JSON types (numbers, strings, lists): {error}") from error
