#!/usr/bin/env python3
"""Growth of time and memory with clients a round, with registered clients, and with processes.

    python scripts/bench_scaling.py --json=scaling.json

Three questions, each in processes of its own:

    cohort    50, 200 and 1000 clients a round of W2 (the MLP with 159,010 parameters, 1000 clients of 60 images), as
              many vmapped at once in all: is the peak of memory the same, and the time a client? If updates were kept
              until the end of a round, 1000 clients would hold 600 MB more than 50.
    clients   1000, 1,000,000 and 10,000,000 registered clients, windows of 60 into the same 60,000 images, 100 a round,
              logistic regression: is a round equally long? The three take turns call by call in one process, so that
              drift hits all alike. Work a round is next to nothing here, so that whatever grows with the clients is
              seen. Start-up and peak memory are those of a process for each. Start-up is to make data, split and
              model and the first state, with the compiling that this takes, without the import of JAX and fedjax8 and
              without compiling a round.
    hosts     one process against two with the same work each, as `bench_hosts.py` measures it, if that is there.

The times of different processes are divided by the time that the machine's large matrix products take right before and
after each call (`bench_floor.py`), because its speed drifts.
"""

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from bench_floor import matmul_clock
from bench_machine import in_own_process, peak_memory_bytes, resident_peak_bytes
from bench_workloads import WORKLOADS, PreparedRun, Workload, experiment_config, prepare

_PARTS = flags.DEFINE_list("parts", ["cohort", "clients", "hosts"], "What to run: cohort, clients, hosts.")
_ROUNDS = flags.DEFINE_integer("rounds", 21, "Timed rounds of each setting; the median is reported.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", 0, "Clients vmapped at once; 0 for the machine's default.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "Write the results there.")
_WORKER = flags.DEFINE_list("worker", None, "Internal: the measurement of this process.")

PARTS = ("cohort", "clients", "hosts")
HOSTS = ("W1", "W2")
"""Workloads that are run by two processes."""
COHORTS = (50, 200, 1000)
CLIENTS = (1_000, 1_000_000, 10_000_000)
WINDOW = 60
"""Images of every registered client, so that all rounds are the same work."""


def of_clients(count: int) -> Workload:
    """A workload of next to no work with so many registered clients."""
    equal = {"smallest": WINDOW, "largest": WINDOW}
    return WORKLOADS["W5"]._replace(partition=("windows", equal), clients=count, cohort=100, batch=20)


def start(workload: Workload, chunk: int) -> PreparedRun:
    """The workload, ready to run; brings up JAX first, so that this is not part of its start-up."""
    from fedjax8.train import set_up_devices

    set_up_devices(None)
    import jax

    jax.block_until_ready(jax.pmap(lambda x: x + 1)(jax.numpy.zeros(jax.local_device_count())))
    return prepare(experiment_config(workload, chunk=chunk))


def measure_cohort(cohort: int, rounds: int, chunk: int) -> dict[str, Any]:
    """Time and memory of one cohort size, in this process."""
    run = start(WORKLOADS["W2"]._replace(cohort=cohort), chunk)
    import jax

    on_host = jax.default_backend() == "cpu"
    at_start = resident_peak_bytes() if on_host else 0
    run.one_call()
    run.one_call()
    peak = peak_memory_bytes()  # before the clock's own matrices
    clock = matmul_clock()
    seconds, clocked, before = [], [], clock()
    for _ in range(rounds):
        seconds.append(run.one_call().seconds)
        after = clock()
        clocked.append(seconds[-1] * (before + after) / 2)
        before = after
    return {
        "cohort": cohort,
        "chunk": run.chunk,
        "rounds": rounds,
        "seconds_per_client": statistics.median(seconds) / cohort,
        "multiply_adds_per_client": statistics.median(clocked) / cohort,
        "peak_memory_bytes": peak,
        "round_memory_bytes": peak - at_start,
    }


def measure_start(clients: int, chunk: int) -> dict[str, Any]:
    """Start-up and memory with so many registered clients, in this process."""
    run = start(of_clients(clients), chunk)
    first = run.one_call().seconds
    return {
        "clients": clients,
        "start_seconds": run.start_seconds,
        "first_round_seconds": first,
        "peak_memory_bytes": resident_peak_bytes(),
    }


def measure_clients(rounds: int, chunk: int) -> list[dict[str, Any]]:
    """Seconds a round for each of `CLIENTS`, in turn in this process."""
    runs = [start(of_clients(count), chunk) for count in CLIENTS]
    for run in runs:
        run.one_call()
        run.one_call()
    seconds: list[list[float]] = [[] for _ in runs]
    for index in range(rounds):
        for i in range(len(runs)):  # another one begins each time
            i = (i + index) % len(runs)
            seconds[i].append(runs[i].one_call().seconds)
    return [
        {
            "seconds_per_round": statistics.median(times),
            "ratio": statistics.median(a / b for a, b in zip(times, seconds[0], strict=True)),
            "rounds": rounds,
        }
        for times in seconds
    ]


def run_parts(parts: list[str], rounds: int, chunk: int) -> dict[str, Any]:
    """Everything, each measurement in its own process."""

    def worker(*what: Any) -> Any:
        settings = [f"--rounds={rounds}", f"--chunk={chunk}"]
        return in_own_process(__file__, [f"--worker={','.join(map(str, what))}", *settings])

    results: dict[str, Any] = {}
    if "cohort" in parts:
        results["cohort"] = rows = [worker("cohort", cohort) for cohort in COHORTS]
        for row in rows:
            for ratio, of in (
                ("time_ratio", "multiply_adds_per_client"),
                ("memory_ratio", "peak_memory_bytes"),
            ):
                row[ratio] = row[of] / rows[0][of]
    if "clients" in parts:
        timed = worker("clients")
        results["clients"] = [worker("start", count) | times for count, times in zip(CLIENTS, timed, strict=True)]
    hosts = Path(__file__).with_name("bench_hosts.py")
    if "hosts" in parts and hosts.exists():
        try:
            results["hosts"] = [in_own_process(str(hosts), [f"--workload={name}"]) for name in HOSTS]
        except (SystemExit, ValueError) as error:  # the rest is worth keeping
            print(f"bench_scaling: {error}", file=sys.stderr)
    return results


def show(results: dict[str, Any]) -> None:
    """Prints the results as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 120)
    if "cohort" in results:
        table = Table("clients a round", "chunk", "ms/client", "time to 50", "peak MB", "memory to 50", "MB for rounds")
        for r in results["cohort"]:
            table.add_row(
                f"{r['cohort']}",
                f"{r['chunk']}",
                f"{1e3 * r['seconds_per_client']:.3f}",
                f"{r['time_ratio']:.2f}",
                f"{r['peak_memory_bytes'] / 1e6:.0f}",
                f"{r['memory_ratio']:.2f}",
                f"{r['round_memory_bytes'] / 1e6:.0f}",
            )
        console.print(table)
    if "clients" in results:
        table = Table("registered clients", "ms/round", "time to 1000", "start s", "peak MB")
        for r in results["clients"]:
            table.add_row(
                f"{r['clients']:,}",
                f"{1e3 * r['seconds_per_round']:.1f}",
                f"{r['ratio']:.2f}",
                f"{r['start_seconds']:.1f}",
                f"{r['peak_memory_bytes'] / 1e6:.0f}",
            )
        console.print(table)
    if "hosts" in results:
        table = Table("workload", "one process, s/round", "two processes, s/round", "times the throughput")
        for r in results["hosts"]:
            one, two = (f"{r['seconds_per_round'][setting]:.3g}" for setting in ("1x1", "2x1"))
            table.add_row(r["workload"], one, two, f"{r['ratio']:.2f}")
        console.print(table)


def main(argv: list[str]) -> None:
    """Runs the parts asked for."""
    logging.set_verbosity(logging.WARNING)
    if unknown := argv[1:] + [part for part in _PARTS.value if part not in PARTS]:
        sys.exit(f"bench_scaling: unknown {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    if _WORKER.value:
        what, *number = _WORKER.value
        if what == "cohort":
            print(json.dumps(measure_cohort(int(*number), _ROUNDS.value, _CHUNK.value)))
        elif what == "start":
            print(json.dumps(measure_start(int(*number), _CHUNK.value)))
        else:
            print(json.dumps(measure_clients(_ROUNDS.value, _CHUNK.value)))
        return
    results = run_parts(_PARTS.value, _ROUNDS.value, _CHUNK.value)
    show(results)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    app.run(main)
