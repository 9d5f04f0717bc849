"""The loop of a run: rounds, evaluations, metrics, checkpoints, and a clean stop on a signal."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.simulation import workdir as files
from fedjax8.simulation.checkpoints import open_checkpoints
from fedjax8.simulation.console import ProgressReport
from fedjax8.simulation.simulation import Simulation, SimulationState

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


class Schedule(NamedTuple):
    """When to stop, evaluate and save, in rounds."""

    rounds: int
    eval_every: int
    checkpoint_every: int


class Outcome(NamedTuple):
    """How a run ended."""

    state: SimulationState
    summary: dict[str, Any]
    signal_number: int | None
    """The signal that stopped it, or None."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells the first SIGTERM or SIGINT received, or None; a second one acts as it did before.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        signal.signal(number, before[number])

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(
    simulation: Simulation,
    test: Mapping[str, np.ndarray],
    schedule: Schedule,
    *,
    workdir: Path | None = None,
    record: Mapping[str, Any] | None = None,
    introduce: Callable[[SimulationState], str] | None = None,
) -> Outcome:
    """Runs to the end of the schedule, or to the end of the round in which a signal came.

    With a `workdir` the run is written there and a later call goes on where it stopped; `record` is its `config.json`,
    which must not change. `introduce` gives the lines printed first. Nothing is written before the run could be set
    up.
    """
    state, seconds, lines, checkpoints = simulation.init(), 0.0, [], None
    with contextlib.ExitStack() as stack:
        if workdir:
            stack.enter_context(files.locked(workdir))
            files.claim(workdir, record or {"config": {}})
            checkpoints = stack.enter_context(open_checkpoints(workdir))
            found = checkpoints.restore(state)
            if found:
                state, seconds = simulation.place(found[0]), found[1]
            lines = files.read_metrics(workdir, state.round)
            files.rewrite_metrics(workdir, lines)
        last = lines[-1] if lines else {}
        started = time.monotonic() - seconds
        stopped = stack.enter_context(stop_on_signals())
        report = stack.enter_context(ProgressReport(schedule.rounds, state.round))
        if introduce:
            report.say(introduce(state))
        if state.round:
            report.say(f"going on after round {state.round} of {schedule.rounds}")

        while state.round < schedule.rounds and stopped() is None:
            begun = time.monotonic()
            state, metrics = simulation.run_round(state)
            metrics["round_seconds"] = time.monotonic() - begun
            if state.round % schedule.eval_every == 0 or state.round == schedule.rounds:
                metrics |= simulation.evaluate(state, test)
            last = _ordered(metrics)
            if workdir:
                files.append_metrics(workdir, last)
            report.round_done(last)
            if checkpoints and state.round % schedule.checkpoint_every == 0:
                checkpoints.save(state, time.monotonic() - started)

        if checkpoints and state.round:
            checkpoints.save(state, time.monotonic() - started)
        finished = state.round >= schedule.rounds
        if "test_loss" not in last and state.round:
            last = last | simulation.evaluate(state, test)
        summary = _summary(state, last, time.monotonic() - started, finished)
        if workdir:
            files.write_json(workdir / files.SUMMARY, summary)
        report.finished(summary, state.ledger)
        if not finished and workdir:
            report.say(f"stopped after round {state.round} of {schedule.rounds}; the same command goes on from there")
        return Outcome(state, summary, stopped())


def _ordered(metrics: Mapping[str, Any]) -> dict[str, Any]:
    first = {name: metrics[name] for name in LINE_ORDER if name in metrics}
    return first | {name: metrics[name] for name in sorted(metrics) if name not in first}


def _summary(state: SimulationState, last: Mapping[str, Any], seconds: float, finished: bool) -> dict[str, Any]:
    return {
        "rounds": state.round,
        "test_accuracy": last.get("test_accuracy"),
        "test_loss": last.get("test_loss"),
        **{name: value for name, value in sorted(last.items()) if name.endswith(("_test_accuracy", "_test_loss"))},
        **state.ledger._asdict(),
        "saving": state.ledger.saving,
        "seconds": seconds,
        "finished": finished,
    }
