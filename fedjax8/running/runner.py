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

from fedjax8.callbacks.base import Callback
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.state import SimulationState
from fedjax8.engine.validation import validator
from fedjax8.hosts import hosts
from fedjax8.results.record import measures_in
from fedjax8.running.compiling import compile_seconds
from fedjax8.running.console import ProgressReport
from fedjax8.running.memory import memory_explained
from fedjax8.running.recording import Recording, Run
from fedjax8.running.schedule import Pace, Schedule
from fedjax8.running.signals import stop_on_signals
from fedjax8.running.writers import Writer

PROFILED_CALLS = 3
"""Calls in a profile: enough to see the pattern, few enough to open."""


class RunResult(NamedTuple):
    """End of a run: its state, summary and the signal that stopped it."""

    state: SimulationState
    summary: dict[str, Any]
    signal_number: int | None
    """The signal that stopped it, or None."""


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
    validation: Mapping[str, np.ndarray] | None = None,
    callbacks: Sequence[tuple[str, Callback]] = (),
    clients: Callable[[SimulationState], Mapping[str, float]] | None = None,
    fixed: Mapping[str, str] | None = None,
) -> RunResult:
    """The result of one simulation, run to its end; see `run_all`."""
    only = Run(simulation, workdir, record, "", about, writers or {}, validation, callbacks, clients, fixed or {})
    return run_one(only, test, schedule, introduce, profile)


def run_one(
    only: Run,
    test: Mapping[str, np.ndarray],
    schedule: Schedule,
    introduce: Callable[[SimulationState], str] | None = None,
    profile: Path | None = None,
    quiet: bool = False,
) -> RunResult:
    """The result of one run; see `run_all`."""

    def advance(states, counts, thens):
        state, lines = only.simulation.run_rounds(states[0], counts[0], thens[0], donate=True)
        return [state], [lines]

    return run_all([only], advance, test, schedule, introduce, profile, quiet)[0]


def run_all(
    runs: Sequence[Run],
    advance: Callable[
        [Sequence[SimulationState], Sequence[int], Sequence[int]],
        tuple[list[SimulationState], list[list[dict[str, Any]]]],
    ],
    test: Mapping[str, np.ndarray],
    schedule: Schedule,
    introduce: Callable[[SimulationState], str] | None = None,
    profile: Path | None = None,
    quiet: bool = False,
) -> list[RunResult]:
    """The results of runs, to the end of the schedule or of the call of rounds in which a signal came.

    A run with a `workdir` is written there and a later call goes on where it stopped. Nothing is written before the run
    could be set up.

    Args:
      runs: one, or several that `advance` takes on together; those behind catch up first.
      advance: `(states, counts, thens) -> (states, metrics)`: so many more rounds of each run, then so many.
      test: columns `[N, ...]` to evaluate on.
      schedule: the rounds after which to stop, evaluate and save.
      introduce: gives the lines printed first.
      profile: where a profile of the calls after the first is written, if anywhere.
      quiet: whether nothing is printed.
    """
    all_hosts, pace = hosts(), Pace(schedule)
    recordings = [Recording(run, all_hosts) for run in runs]
    measures = [measuring(run, test) for run in runs]
    with contextlib.ExitStack() as stack:
        stack.enter_context(memory_explained(runs[0].simulation.chunk))
        stopped = stack.enter_context(stop_on_signals())
        states = [recording.open(stack, schedule) for recording in recordings]
        labels = [run.label for run in runs]
        done = sum(state.round for state in states)
        metric = measures_in(runs[0].record or {}, "", []).metric
        report = stack.enter_context(
            ProgressReport(schedule.rounds * len(runs), done, None, quiet or not all_hosts.first, labels, metric)
        )
        if introduce:
            report.say(introduce(states[0]))
        for state, label, recording in zip(states, labels, recordings, strict=True):
            if state.round and not recording.deciding.stopped_by:
                report.say(f"{label and label + ': '}going on after round {state.round} of {schedule.rounds}")
        say_notes(recordings, labels, report)
        profiler = stack.enter_context(profiling(profile))
        compiling = stack.enter_context(compile_seconds(report.compiling))

        saved_at = time.monotonic()
        *_, stop = all_hosts.agree(0.0, False, stopped())
        while any(going := those_going(states, recordings, schedule)) and stop is None:
            rounds_done = [state.round for state, goes in zip(states, going, strict=True) if goes]
            behind = min(rounds_done)
            count = min([pace.count(behind), *(there - behind for there in rounds_done if there > behind)])
            counts = [count if goes and s.round == behind else 0 for s, goes in zip(states, going, strict=True)]
            then = pace.count(behind + count)
            begun, _ = time.monotonic(), compiling.take()
            states, lines_of_runs = advance(states, counts, [then if of_run else 0 for of_run in counts])
            ended = time.monotonic()
            due = 0 < schedule.checkpoint_seconds <= ended - saved_at and not any(r.saving for r in recordings)
            seconds, due, stop = all_hosts.agree(ended - begun, due, stopped())
            saved_at = ended if due else saved_at
            rounds, compiled = max(len(lines) for lines in lines_of_runs), compiling.take()
            pace.learn(rounds, seconds)
            profiler()
            together = zip(list(states), lines_of_runs, recordings, labels, measures, strict=True)
            for i, (state, lines, recording, label, measure) in enumerate(together):
                for every, evaluate in ((schedule.eval_every, measure), (schedule.clients_every, runs[i].clients)):
                    if lines and evaluate and schedule.due(every, state.round):
                        lines[-1] |= evaluate(state)
                lines = [line | {"round_seconds": seconds / rounds} | recording.deciding.facts() for line in lines]
                if lines and compiled:
                    lines[0]["compile_seconds"] = compiled
                for line in lines:
                    recording.write(line)
                    schedule.check(line)
                    report.round_done(recording.last, label)
                states[i] = recording.deciding.see(lines, state, schedule)
                if lines and (due or schedule.save_due(state.round)):
                    recording.save(states[i])
            say_notes(recordings, labels, report)

        outcomes = []
        for state, recording, run_, measure in zip(states, recordings, runs, measures, strict=True):
            by, finished = recording.deciding.stopped_by, not recording.deciding.goes_on(state, schedule)
            summary = recording.finish(state, test, finished, measure)
            report.finished(summary, state.ledger, run_.label)
            if by:
                report.say(
                    f"{run_.label and run_.label + ': '}stopped after round {by['round']} of {schedule.rounds} by "
                    f"{by['callback']}: {by['reason']}"
                )
            if recording.ending:
                report.say(f"{run_.label and run_.label + ': '}{recording.ending}")
            if not finished and run_.workdir:
                report.say(
                    f"stopped after round {state.round} of {schedule.rounds}; the same command goes on from there"
                )
            outcomes.append(RunResult(state, summary, stop))
        return outcomes


def those_going(states: Sequence[SimulationState], recordings: Sequence[Recording], schedule: Schedule) -> list[bool]:
    """Whether each run has rounds to come."""
    return [recording.deciding.goes_on(state, schedule) for state, recording in zip(states, recordings, strict=True)]


def measuring(run: Run, test: Mapping[str, np.ndarray]) -> Callable[[SimulationState], dict[str, float]]:
    """`measure(state) -> metrics` on the test rows and on this run's validation rows, of its model with its own frozen
    parameters; runs beside each other compile it once."""
    validate = validator(run.simulation, run.validation)
    return lambda state: run.simulation.evaluate(state, test) | validate(state)


def say_notes(recordings: Sequence[Recording], labels: Sequence[str], report: ProgressReport) -> None:
    """Prints the remarks of recordings, each once."""
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
