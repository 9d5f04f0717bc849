"""Files of a run: written round by round, and read when it is resumed."""

import contextlib
import functools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8 import trees
from fedjax8.callbacks.base import Callback
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.exchange.ledger import Ledger
from fedjax8.hosts import Hosts
from fedjax8.models.saved import FILE as MODEL
from fedjax8.models.saved import save_model
from fedjax8.results.runs import ABOUT
from fedjax8.running import workdir as files
from fedjax8.running.checkpoints import Checkpoints, NotSaved, open_checkpoints
from fedjax8.running.deciding import Deciding
from fedjax8.running.divergence import explanation, loss_of_a_guess, nothing_usable
from fedjax8.running.identity import check_claim, check_rounds, write_part
from fedjax8.running.schedule import Schedule, who_of
from fedjax8.running.writers import Writer, Writing

FIRST = "round"
EVALUATED = ("test_", "validation_")
"""Beginnings of the names of evaluations, which follow it in a metrics line, each group as evaluated and its loss
last."""
NEXT = ("train_loss", "uplink_bytes", "downlink_bytes", "clients", "round_seconds", "compile_seconds")
"""The fields that everyone reads of every line; the rest follow by name."""
FORGIVEN = 2
"""Checkpoints in a row that may fail: the disk may be full for a while, but hours of work should not hang on it."""


class Run(NamedTuple):
    """A run that `run_all` drives."""

    simulation: Simulation
    workdir: Path | None = None
    record: Mapping[str, Any] | None = None
    """Its `config.json`; see `identity`."""
    label: str = ""
    """Its label in printed lines, where there are several."""
    about: Callable[[], Mapping[str, Any]] | None = None
    """Gives its `about.json`."""
    writers: Mapping[str, Writer] = {}
    """Writers of its metrics besides `metrics.jsonl`, by name."""
    validation: Mapping[str, np.ndarray] | None = None
    """Columns `[V, ...]` that are evaluated beside the test rows."""
    callbacks: Sequence[tuple[str, Callback]] = ()
    """Its callbacks, by name."""
    clients: Callable[[SimulationState], Mapping[str, float]] | None = None
    """`state -> personal metrics`, called after the rounds of `Schedule.clients_every`."""
    fixed: Mapping[str, str] = {}
    """Config fields that must not change when it goes on, with the reason; see `identity.fixed_fields`."""


class Recording:
    """The files of one run, and its callbacks. Without a `workdir` nothing is written. Process 0 has the files; the
    others have the states of their clients, where these are on disk."""

    def __init__(self, run: "Run", hosts: Hosts):
        self._simulation, self._workdir, self._record = run.simulation, run.workdir, run.record or {"config": {}}
        self._about, self._hosts, self._fixed = run.about, hosts, run.fixed
        self.deciding = Deciding(run.callbacks, run.simulation, run.workdir, hosts)
        self._writing = Writing(run.writers if run.workdir and hosts.first else {})
        self._checkpoints: Checkpoints | None = None
        self._started = time.monotonic()
        self._failures = 0
        self._named: set[int] = set()
        self._without_line = 0
        self._rejection_noted = False
        self._unusable = 0
        self._compile_seconds = 0.0
        self._waited, self._simulated = 0.0, 0.0
        self.last: Mapping[str, Any] = {}
        self.ending = ""
        """Explanation and advice for a run that diverged; known when it is over."""
        self.notes: list[str] = []
        """Remarks for the user, to be taken and printed."""

    def open(self, stack: contextlib.ExitStack, schedule: Schedule) -> SimulationState:
        """The state to go on from. Nothing is written before the run could be set up."""
        self._simulation.discover()
        self._started = time.monotonic()
        workdir = self._workdir
        if not workdir:
            return self._decided({}, self._same_start(self._simulation.init()))
        self._hosts.ask(lambda: self._claim(workdir, stack))
        state = self._simulation.init(files.client_states_folder(workdir, self._hosts.number))
        opened = open_checkpoints(workdir, self._hosts, self._record, self._fixed)
        saved = self._checkpoints = stack.enter_context(opened)
        found = saved.restore(state)
        self.notes += saved.notes
        if found:
            state = self._simulation.place(found[0])
            self._started -= found[1]
            check_rounds(workdir, saved.of, state.round, schedule, bool(saved.callbacks))
        else:
            state = self._same_start(state)
        state = self._decided(saved.callbacks, state)
        goes_on = self.deciding.goes_on(state, schedule)
        answer = self._hosts.ask(lambda: self._cut_metrics(workdir, state.round, saved.changed, goes_on))
        self.last, self._without_line = answer["last"], answer["missing"]
        self._compile_seconds, self._waited = answer["compile_seconds"], answer["waited"]
        self._simulated = state.ledger.seconds or 0.0
        self.notes += answer["notes"]
        stack.callback(self._writing.close)
        self._writing.open(workdir, self._record, state.round)
        return state

    def _decided(self, saved: Mapping[str, Any], state: SimulationState) -> SimulationState:
        """The state with the decisions of callbacks in force."""
        state = self.deciding.resume(saved, state)
        self.notes += self.deciding.notes
        return state

    def _claim(self, workdir: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
        stack.enter_context(files.locked(workdir))
        check_claim(workdir, self._record, self._fixed)
        if self._about:
            files.write_json(workdir / ABOUT, self._about())
        return {}

    def _cut_metrics(self, workdir: Path, last_round: int, changed: Sequence[str], goes_on: bool) -> dict[str, Any]:
        """{last, missing, notes, compile_seconds, waited}: the lines up to the checkpoint are kept, and remarks name
        those that are lost. A run that goes on notes the part that begins."""
        lines, missing, damaged = files.read_metrics(workdir, last_round)
        notes = []
        if missing:
            notes.append(
                f"{files.METRICS} has no line for {len(missing)} of the {last_round} rounds before the checkpoint "
                f"({files.ranges(missing)}); their metrics are lost, the model is not"
            )
        if damaged:
            notes.append(f"{files.METRICS} is damaged; the old file lies in {files.set_metrics_aside(workdir)}")
        files.rewrite_metrics(workdir, lines)
        if goes_on:
            write_part(workdir, self._record, last_round, changed)
        last = lines[-1] if lines and lines[-1]["round"] == last_round else {}
        compiled = sum(line.get("compile_seconds", 0.0) for line in lines)
        ends = [0.0, *(line.get("simulated_seconds") or 0.0 for line in lines)]
        waited = sum(map(_waited, lines, ends))
        return {
            "last": last,
            "missing": len(missing),
            "notes": notes,
            "compile_seconds": compiled,
            "waited": waited,
        }

    def _same_start(self, state: SimulationState) -> SimulationState:
        """A new state, the same on hosts whose processors round differently."""
        server, down_states = self._hosts.spread((state.server, state.down_states))
        return self._simulation.place(state._replace(server=server, down_states=down_states))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Takes in one round's line."""
        self._waited += _waited(metrics, self._simulated)
        self._simulated = metrics.get("simulated_seconds", 0.0)
        self.last = _ordered(metrics)
        self._compile_seconds += metrics.get("compile_seconds", 0.0)
        self._unusable = self._unusable + 1 if nothing_usable(metrics) else 0
        new = set(metrics.get("excluded_clients", ())) - self._named
        if new:
            self._named |= new
            why = "contributions not finite, too large to be summed, or not admitted"
            self.notes.append(f"round {metrics['round']}: left out{who_of(metrics)}, {why}; reported once for each")
        if metrics.get("rejected") and not self._rejection_noted:
            self._rejection_noted = True
            self.notes.append(
                f"round {metrics['round']}: rejected, the server's step gave numbers that are not finite or too large; "
                "everything stays as it was before the round; reported once"
            )
        if self._workdir and self._hosts.first:
            files.append_metrics(self._workdir, self.last)
        self._writing.write(self.last)

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._checkpoints is not None and self._checkpoints.busy

    def save(self, state: SimulationState) -> None:
        """Begins a checkpoint, when the one before it is written. Where that could not be, `FORGIVEN` times in a row
        are only noted."""
        if not self._checkpoints or not state.round:
            return
        self._forgiving(self._checkpoints.end)
        if self._workdir and self._hosts.first:
            files.sync_metrics(self._workdir)
        elapsed, callbacks = time.monotonic() - self._started, self.deciding.saved()
        self._forgiving(functools.partial(self._checkpoints.begin, state, elapsed, callbacks))

    def _forgiving(self, work: Callable[[], bool]) -> None:
        try:
            if work():
                self._failures = 0
        except NotSaved as error:
            self._failures += 1
            if self._failures > FORGIVEN:
                raise
            self.notes.append(f"{error}; going on")

    def finish(
        self, state: SimulationState, test: Mapping[str, np.ndarray], finished: bool, measure: Callable
    ) -> dict[str, Any]:
        """The summary, after the last state is saved. `measure(state)` evaluates; of `test` labels are read."""
        self.save(state)
        if self._checkpoints:
            self._checkpoints.end()
        if "test_loss" not in self.last and state.round:
            self.last = {**self.last, **measure(state)}
        backbone = trees.num_bytes(self._simulation.variables(state).frozen)
        guess, config = loss_of_a_guess(test), self._record["config"]
        self.ending = explanation(self.last, guess, max(self._unusable, nothing_usable(self.last)), config)
        metric = self._record.get("task", {}).get("metric", "accuracy")
        summary = _summary(state, self.last, time.monotonic() - self._started, finished, backbone, metric)
        if self._without_line:
            summary["rounds_without_line"] = self._without_line
        summary["compile_seconds"] = self._compile_seconds
        if state.ledger.seconds:
            summary["waiting_share"] = self._waited / state.ledger.seconds
        summary["diverged"] = bool(self.ending)
        if self.deciding.stopped_by:
            summary["stopped_by"] = dict(self.deciding.stopped_by)
        if self._workdir and self._hosts.first:
            if finished:
                about = {"round": str(state.round), "config": json.dumps(files.json_ready(config))}
                save_model(self._workdir / MODEL, self._simulation.variables(state), about)
            files.write_json(self._workdir / files.SUMMARY, summary)
        self._writing.close(summary)
        return summary


def _ordered(metrics: Mapping[str, Any]) -> dict[str, Any]:
    order = [FIRST]
    for part in EVALUATED:
        order += sorted((name for name in metrics if name.startswith(part)), key=lambda name: name.endswith("_loss"))
    first = {name: metrics[name] for name in (*order, *NEXT) if name in metrics}
    return first | {name: metrics[name] for name in sorted(metrics) if name not in first}


def _waited(line: Mapping[str, Any], before: float) -> float:
    """Simulated seconds of a round that begins at `before` that its clients wait; 0 without a clock."""
    return float(((line.get("simulated_seconds") or 0.0) - before) * (line.get("waiting_share") or 0.0))


def _simulated(ledger: Ledger) -> dict[str, Any]:
    """Time and waste of a run with a clock."""
    if ledger.seconds is None:
        return {}
    return {"simulated_seconds": ledger.seconds, "wasted_bytes": ledger.wasted_bytes}


def is_evaluated(name: str) -> bool:
    """Whether a metric is of an evaluation, of the model or one of its views."""
    return any(name.startswith(part) or f"_{part}" in name for part in EVALUATED)


def _summary(
    state: SimulationState, last: Mapping[str, Any], seconds: float, finished: bool, backbone_bytes: int, metric: str
) -> dict[str, Any]:
    """The content of `summary.json`, `metric` being the main one. `backbone_bytes`, with frozen parameters: their size,
    which every client gets once, before its first round. It is in no other number: bytes and `saving` are of messages
    round by round."""
    return {
        "rounds": state.round,
        f"test_{metric}": last.get(f"test_{metric}"),
        "test_loss": last.get("test_loss"),
        **{name: value for name, value in sorted(last.items()) if is_evaluated(name)},
        **{name: value for name, value in sorted(last.items()) if name.startswith("personal_")},
        **state.ledger.totals(),
        "saving": state.ledger.saving,
        **_simulated(state.ledger),
        **({"backbone_bytes": backbone_bytes} if backbone_bytes else {}),
        **{name: last[name] for name in ("delta", "epsilon") if name in last},
        "seconds": seconds,
        "finished": finished,
    }
