#!/usr/bin/env python3
"""Times rounds on two processes of one CPU device each against one such process, and prints JSON.

    python scripts/bench_hosts.py --workload=W2

Each process is held to one core, as a stand-in for a host, and the two settings take turns call by call, so that a
machine whose speed drifts does not spoil the ratio. The cores must have nothing else to do: the slower of two processes
decides. `cpu_ratio`, of processor seconds instead of wall seconds, is the ratio without any waiting, and holds on a
busy machine too. Neither has the cost of a network, only of the loopback device.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from typing import Any

ROUNDS_PER_CALL = {"W1": 1, "W2": 8, "W6": 2}
"""Enough for a call of about a second, as a run makes them."""


def measure(workload: str, precision: str = "float32", turns: int = 7) -> dict[str, Any]:
    """Seconds a round of 1x1 and 2x1 (processes x devices), and the speedup of the second; medians."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench_hosts: two cores are needed")
    settings = {"1x1": _start(workload, precision, cores[:1]), "2x1": _start(workload, precision, cores[:2])}
    try:
        for processes in settings.values():
            for _ in range(2):  # the first call compiles, the second warms up; the other setting is idle meanwhile
                _one_call(processes)
        wall: dict[str, list[float]] = {name: [] for name in settings}
        cpu: dict[str, list[float]] = {name: [] for name in settings}
        for _ in range(turns):
            for name, processes in settings.items():
                answers = _one_call(processes)
                wall[name].append(max(answer[0] for answer in answers) / ROUNDS_PER_CALL[workload])
                cpu[name].append(max(answer[1] for answer in answers) / ROUNDS_PER_CALL[workload])
    finally:
        for processes in settings.values():
            for process in processes:
                process.stdin.close()
        for processes in settings.values():
            for process in processes:
                process.wait()
    return {
        "workload": workload,
        "precision": precision,
        "seconds_per_round": {name: statistics.median(times) for name, times in wall.items()},
        "cpu_seconds_per_round": {name: statistics.median(times) for name, times in cpu.items()},
        "ratio": _ratio(wall),
        "cpu_ratio": _ratio(cpu),
        "all_seconds_per_round": wall,
    }


def _ratio(times: dict[str, list[float]]) -> float:
    return statistics.median(one / two for one, two in zip(times["1x1"], times["2x1"], strict=True))


def _start(workload: str, precision: str, cores: list[int]) -> list[subprocess.Popen]:
    """One process on each core, waiting for its turn."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port = probe.getsockname()[1]
    started = []
    for number, core in enumerate(cores):
        command = [sys.executable, os.path.abspath(__file__), f"--workload={workload}", f"--precision={precision}"]
        command += [f"--core={core}", f"--coordinator=localhost:{port}", f"--process={number}/{len(cores)}"]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    return started


def _one_call(processes: list[subprocess.Popen]) -> list[tuple[float, ...]]:
    """(wall seconds, processor seconds) of each process."""
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes]
    if not all(answers):
        raise SystemExit("bench_hosts: a process failed; its message is above")
    return [tuple(map(float, answer.split())) for answer in answers]


def work(workload: str, precision: str, core: int, coordinator: str, process: str) -> None:
    """In a process of its own: one call of rounds for each line read, its seconds for an answer."""
    os.sched_setaffinity(0, {core})
    from bench_workloads import WORKLOADS, experiment_config

    from fedjax8.distributed import Group, together
    from fedjax8.train import set_up_devices

    number, count = map(int, process.split("/"))
    set_up_devices(1)
    with together(Group(coordinator, count, number) if count > 1 else Group()):
        from fedjax8.build import build
        from fedjax8.hosts import hosts

        rounds, all_hosts = ROUNDS_PER_CALL[workload], hosts()
        simulation = build(experiment_config(WORKLOADS[workload], precision)).simulation
        state = simulation.init()
        for _ in sys.stdin:
            begun, cpu_begun, done = time.perf_counter(), time.process_time(), 0
            while done < rounds:
                state, lines = simulation.run_rounds(state, rounds - done, then=rounds)
                done += len(lines)
            all_hosts.agree(0.0, None)
            print(time.perf_counter() - begun, time.process_time() - cpu_begun, flush=True)


def main() -> None:
    """Measures, or is one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="W2", choices=sorted(ROUNDS_PER_CALL))
    parser.add_argument("--precision", default="float32", choices=("float32", "fp8"))
    parser.add_argument("--turns", type=int, default=7, help="calls of each setting; medians are reported")
    for internal in ("core", "coordinator", "process"):
        parser.add_argument(f"--{internal}", type=int if internal == "core" else str, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.process:
        work(given.workload, given.precision, given.core, given.coordinator, given.process)
    else:
        print(json.dumps(measure(given.workload, given.precision, given.turns)))


if __name__ == "__main__":
    main()
