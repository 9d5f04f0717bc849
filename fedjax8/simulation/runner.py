"""The loop of a run: rounds, evaluations, metrics, checkpoints, and a clean stop on a signal.

On several hosts every process runs this loop, and all do the same: see `hosts.py`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.simulation import workdir as files
from fedjax8.simulation.checkpoints import Checkpoints, NotSaved, open_checkpoints
from fedjax8.simulation.console import ProgressReport
from fedjax8.simulation.divergence import explanation, loss_of_a_guess, nothing_usable
from fedjax8.simulation.hosts import Hosts, hosts
from fedjax8.simulation.memory import memory_explained
from fedjax8.simulation.runs import ABOUT
from fedjax8.simulation.signals import stop_on_signals
from fedjax8.simulation.simulation import Simulation, SimulationState
from fedjax8.simulation.writers import Writer, Writing

LINE_ORDER = (
    "round",
    "test_accuracy",
    "test_loss",
    "train_loss",
    "uplink_bytes",
    "downlink_bytes",
    "clients",
    "round_seconds",
)
"""The fields of a metrics line that everyone reads, in order; the rest follow by name."""


CALL_SECONDS = 1.0
"""How long a user may wait for an answer to Ctrl-C, or for the progress bar to move, where rounds are shorter."""


FORGIVEN = 2
"""Checkpoints in a row that may fail: the disk may be full for a while, but hours of work should not hang on it."""


PROFILED_CALLS = 3
"""Enough to see what repeats, little enough to open."""


class Schedule(NamedTuple):
    """When to stop, evaluate and save, in rounds."""

    rounds: int
    eval_every: int
    checkpoint_every: int
    on_nan: str = "drop"
    """`error` ends the run where a contribution was not finite; `drop` leaves it out and counts it."""

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
    """` (clients 3, 17 and 2 more)`: whom a round's line names as excluded; empty if nobody."""
    names = [str(client) for client in line.get("excluded_clients", ())]
    unnamed = line["excluded"] - len(names)
    more = f" and {unnamed} more" if unnamed > 0 else ""
    return f" (client{'s' * (len(names) > 1)} {', '.join(names)}{more})" if names else ""


class Pace:
    """How many rounds to run as one dispatch: as many as end within `CALL_SECONDS`, in powers of two, and none beyond
    the next round that is evaluated or saved. A signal is answered, and progress shown, between calls."""

    def __init__(self, schedule: Schedule):
        self._schedule, self._most = schedule, 1
        self._compiled = False

    def count(self, done: int) -> int:
        """Rounds of the call after `done` rounds; 0 at the end."""
        every = (self._schedule.eval_every, self._schedule.checkpoint_every)
        return min(self._most, self._schedule.rounds - done, *(period - done % period for period in every))

    def learn(self, rounds: int, seconds: float) -> None:
        """Takes in how long a call took; the first one compiles and tells nothing."""
        if self._compiled:
            fitting = max(1, int(CALL_SECONDS * rounds / max(seconds, 1e-9)))
            self._most = 1 << (fitting.bit_length() - 1)
        self._compiled = True


class Outcome(NamedTuple):
    """How a run ended."""

    state: SimulationState
    summary: dict[str, Any]
    signal_number: int | None
    """The signal that stopped it, or None."""


class Recording:
    """What one run leaves on disk, and what it finds there. Without a `workdir` nothing is written. Process 0 has the
    files; the others have the states of their clients, where these are on disk."""

    def __init__(self, run: "Run", hosts: Hosts):
        self._simulation, self._workdir, self._record = run.simulation, run.workdir, run.record or {"config": {}}
        self._about, self._hosts = run.about, hosts
        self._writing = Writing(run.writers if run.workdir and hosts.first else {})
        self._checkpoints: Checkpoints | None = None
        self._started = time.monotonic()
        self._failures = 0
        self._named: set[int] = set()
        self._without_line = 0
        self._told_rejected = False
        self._unusable = 0
        self.last: Mapping[str, Any] = {}
        self.ending = ""
        """How a run that diverged ended, and what to try; known when it is over."""
        self.notes: list[str] = []
        """Lines for a person, to be taken and printed."""

    def open(self, stack: contextlib.ExitStack) -> SimulationState:
        """The state to go on from. Nothing is written before the run could be set up."""
        self._simulation.discover()
        self._started = time.monotonic()
        workdir = self._workdir
        if not workdir:
            return self._same_start(self._simulation.init())
        self._hosts.ask(lambda: self._claim(workdir, stack))
        state = self._simulation.init(files.client_states_folder(workdir, self._hosts.number))
        self._checkpoints = stack.enter_context(open_checkpoints(workdir, self._hosts, self._record))
        found = self._checkpoints.restore(state)
        self.notes += self._checkpoints.notes
        if found:
            state = self._simulation.place(found[0])
            self._started -= found[1]
        else:
            state = self._same_start(state)
        told = self._hosts.ask(lambda: self._cut_metrics(workdir, state.round))
        self.last, self._without_line = told["last"], told["missing"]
        self.notes += told["notes"]
        stack.callback(self._writing.close)
        self._writing.open(workdir, self._record, state.round)
        return state

    def _claim(self, workdir: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
        stack.enter_context(files.locked(workdir))
        files.claim(workdir, self._record)
        if self._about:
            files.write_json(workdir / ABOUT, self._about())
        return {}

    def _cut_metrics(self, workdir: Path, last_round: int) -> dict[str, Any]:
        """Leaves the lines up to the checkpoint; says what of them is lost."""
        lines, missing, damaged = files.read_metrics(workdir, last_round)
        notes = []
        if missing:
            notes.append(
                f"{files.METRICS} has no line for {len(missing)} of the {last_round} rounds before the checkpoint "
                f"({files.ranges(missing)}); what they logged is lost, the model is not"
            )
        if damaged:
            notes.append(f"{files.METRICS} is damaged; what it was lies in {files.set_metrics_aside(workdir)}")
        files.rewrite_metrics(workdir, lines)
        if self._checkpoints and self._checkpoints.changed:
            files.note_resumed(workdir, last_round, self._checkpoints.changed)
        last = lines[-1] if lines and lines[-1]["round"] == last_round else {}
        return {"last": last, "missing": len(missing), "notes": notes}

    def _same_start(self, state: SimulationState) -> SimulationState:
        """A new state, the same on hosts whose processors round differently."""
        server, down_states = self._hosts.spread((state.server, state.down_states))
        return self._simulation.place(state._replace(server=server, down_states=down_states))

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Takes in one round's line."""
        self.last = _ordered(metrics)
        self._unusable = self._unusable + 1 if nothing_usable(metrics) else 0
        new = set(metrics.get("excluded_clients", ())) - self._named
        if new:
            self._named |= new
            why = "what was sent was not finite, too large to be summed, or not admitted"
            self.notes.append(f"round {metrics['round']}: left out{who_of(metrics)}, {why}; said once for each")
        if metrics.get("rejected") and not self._told_rejected:
            self._told_rejected = True
            self.notes.append(
                f"round {metrics['round']}: rejected, the server's step gave numbers that are not finite or too large; "
                "everything stays as it was before the round; said once"
            )
        if self._workdir and self._hosts.first:
            files.append_metrics(self._workdir, self.last)
        self._writing.write(self.last)

    def save(self, state: SimulationState, forgiving: bool = True) -> None:
        """A checkpoint. Where it cannot be written, `FORGIVEN` times in a row are only noted."""
        if not self._checkpoints or not state.round:
            return
        if self._workdir and self._hosts.first:
            files.sync_metrics(self._workdir)
        try:
            self._checkpoints.save(state, time.monotonic() - self._started)
            self._failures = 0
        except NotSaved as error:
            self._failures += 1
            if not forgiving or self._failures > FORGIVEN:
                raise
            self.notes.append(f"{error}; going on")

    def finish(
        self, state: SimulationState, test: Mapping[str, np.ndarray], finished: bool, evaluate: Callable
    ) -> dict[str, Any]:
        """Saves what is not saved; returns the summary."""
        self.save(state, forgiving=False)
        if "test_loss" not in self.last and state.round:
            self.last = {**self.last, **evaluate(state, test)}
        backbone = trees.num_bytes(self._simulation.variables(state).frozen)
        guess, config = loss_of_a_guess(test), self._record["config"]
        self.ending = explanation(self.last, guess, max(self._unusable, nothing_usable(self.last)), config)
        summary = _summary(state, self.last, time.monotonic() - self._started, finished, backbone)
        if self._without_line:
            summary["rounds_without_line"] = self._without_line
        summary["diverged"] = bool(self.ending)
        if self._workdir and self._hosts.first:
            files.write_json(self._workdir / files.SUMMARY, summary)
        self._writing.close(summary)
        return summary


class Run(NamedTuple):
    """One of the runs that `run_all` drives."""

    simulation: Simulation
    workdir: Path | None = None
    record: Mapping[str, Any] | None = None
    """Its `config.json`, which must not change."""
    label: str = ""
    """What tells it from the others in what is printed."""
    about: Callable[[], Mapping[str, Any]] | None = None
    """Gives its `about.json`."""
    writers: Mapping[str, Writer] = {}
    """Where its metrics go besides `metrics.jsonl`, by name."""


def run(
    simulation: Simulation,
    test: Mapping[str, np.ndarray],
    schedule: Schedule,
    *,
    workdir: Path | None = None,
    record: Mapping[str, Any] | None = None,
    about: Callable[[], Mapping[str, Any]] | None = None,
    writers: Mapping[str, Writer] | None = None,
    introduce: Callable[[SimulationState], str] | None = None,
    profile: Path | None = None,
) -> Outcome:
    """Runs one simulation; see `run_all`."""

    def advance(states, counts, thens):
        state, lines = simulation.run_rounds(states[0], counts[0], thens[0], donate=True)
        return [state], [lines]

    only = Run(simulation, workdir, record, about=about, writers=writers or {})
    return run_all([only], advance, test, schedule, introduce, profile)[0]


def run_all(
    runs: Sequence[Run],
    advance: Callable,
    test: Mapping[str, np.ndarray],
    schedule: Schedule,
    introduce: Callable[[SimulationState], str] | None = None,
    profile: Path | None = None,
) -> list[Outcome]:
    """Runs to the end of the schedule, or to the end of the call of some rounds in which a signal came.

    A run with a `workdir` is written there and a later call goes on where it stopped. Nothing is written before the run
    could be set up.

    Args:
      runs: one, or several that `advance` takes on together; those behind catch up first.
      advance: `(states, counts, thens) -> (states, metrics)`: so many more rounds of each run, then so many.
      test: columns `[N, ...]` to evaluate on.
      schedule: when to stop, evaluate and save.
      introduce: gives the lines printed first.
      profile: where a profile of the calls after the first is written, if anywhere.
    """
    all_hosts, pace = hosts(), Pace(schedule)
    recordings = [Recording(run, all_hosts) for run in runs]
    evaluate = runs[0].simulation.evaluate
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_explained(runs[0].simulation.parts.chunk))
        stopped = stack.enter_context(stop_on_signals())
        states = [recording.open(stack) for recording in recordings]
        labels = [run.label for run in runs]
        done = sum(state.round for state in states)
        report = stack.enter_context(
            ProgressReport(schedule.rounds * len(runs), done, labels=labels, silent=not all_hosts.first)
        )
        if introduce:
            report.say(introduce(states[0]))
        for state, label in zip(states, labels, strict=True):
            if state.round:
                report.say(f"{label and label + ': '}going on after round {state.round} of {schedule.rounds}")
        say_notes(recordings, labels, report)
        profiler = stack.enter_context(profiling(profile))

        _, stop = all_hosts.agree(0.0, stopped())
        while (behind := min(state.round for state in states)) < schedule.rounds and stop is None:
            ahead = [state.round for state in states if state.round > behind]
            count = min([pace.count(behind), *(there - behind for there in ahead)])
            counts = [count if state.round == behind else 0 for state in states]
            then = pace.count(behind + count)
            begun = time.monotonic()
            states, told = advance(states, counts, [then if of_run else 0 for of_run in counts])
            seconds, stop = all_hosts.agree(time.monotonic() - begun, stopped())
            rounds = max(len(lines) for lines in told)
            pace.learn(rounds, seconds)
            profiler()
            for state, lines, recording, label in zip(states, told, recordings, labels, strict=True):
                if lines and (state.round % schedule.eval_every == 0 or state.round == schedule.rounds):
                    lines[-1] |= evaluate(state, test)
                for line in lines:
                    recording.write(line | {"round_seconds": seconds / rounds})
                    schedule.check(line)
                    report.round_done(recording.last, label)
                if lines and state.round % schedule.checkpoint_every == 0:
                    recording.save(state)
            say_notes(recordings, labels, report)

        outcomes = []
        for state, recording, run_ in zip(states, recordings, runs, strict=True):
            finished = state.round >= schedule.rounds
            summary = recording.finish(state, test, finished, evaluate)
            report.finished(summary, state.ledger, run_.label)
            if recording.ending:
                report.say(f"{run_.label and run_.label + ': '}{recording.ending}")
            if not finished and run_.workdir:
                report.say(
                    f"stopped after round {state.round} of {schedule.rounds}; the same command goes on from there"
                )
            outcomes.append(Outcome(state, summary, stop))
        return outcomes


def say_notes(recordings: Sequence[Recording], labels: Sequence[str], report: ProgressReport) -> None:
    """Prints what recordings have to say, each thing once."""
    for recording, label in zip(recordings, labels, strict=True):
        for note in recording.notes:
            report.say(f"{label and label + ': '}{note}")
        recording.notes.clear()


@contextlib.contextmanager
def profiling(directory: Path | None) -> Iterator[Callable[[], None]]:
    """Yields a function to call after every call of rounds: it writes a JAX profile of those after the first, which
    compiles, for `PROFILED_CALLS` calls. Nothing happens without a directory."""
    calls = 0

    def after_call() -> None:
        nonlocal calls
        calls += 1
        if directory and calls == 1:
            jax.profiler.start_trace(str(directory))
        elif directory and calls == 1 + PROFILED_CALLS:
            jax.profiler.stop_trace()

    try:
        yield after_call
    finally:
        if directory and 1 <= calls <= PROFILED_CALLS:
            jax.profiler.stop_trace()


def _ordered(metrics: Mapping[str, Any]) -> dict[str, Any]:
    first = {name: metrics[name] for name in LINE_ORDER if name in metrics}
    return first | {name: metrics[name] for name in sorted(metrics) if name not in first}


def _summary(
    state: SimulationState, last: Mapping[str, Any], seconds: float, finished: bool, backbone_bytes: int
) -> dict[str, Any]:
    """What `summary.json` holds. `backbone_bytes`, where something is frozen: the size of that, which every client gets
    once, before its first round. It is in no other number: bytes and `saving` are of what travels round by round."""
    return {
        "rounds": state.round,
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        **{name: value for name, value in sorted(last.items()) if name.endswith(("_test_accuracy", "_test_loss"))},
        **state.ledger.totals(),
        "saving": state.ledger.saving,
        **({"backbone_bytes": backbone_bytes} if backbone_bytes else {}),
        **{name: last[name] for name in ("delta", "epsilon") if name in last},
        "seconds": seconds,
        "finished": finished,
    }
