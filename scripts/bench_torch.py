#!/usr/bin/env python3
"""Milliseconds of a local training step, fedjax8 against PyTorch, on all cores of a CPU.

    pip install -e ".[bench]"
    python scripts/bench_torch.py --workloads=W1,W2,W6 --json=torch.json

For fedjax8, a step is the time of a whole round over its number of local steps: cohort, model sent and summed included.
For PyTorch it is a simulator's work on a client: load the model, then for each batch gather shuffled uint8
rows, normalize, forward, backward, plain SGD; no averaging and no messages. Two ways to use the machine are tried:

    processes   one process a core, each with `torch.set_num_threads(1)`, all with their share of the round's clients
    threads     one process that computes with as many threads as there are cores

and the better one counts. Images lie channels first or channels last, whichever is faster in a trial of each process.
Every contender has processes of its own that live on and wait. They run the same number of steps, that of one round, in
turn, so that a machine whose speed drifts treats all alike; ratios are medians of pairs. Seconds are those that pass
until the last process is done, over the steps of all of them. fedjax8 runs in float32.
"""

import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from bench_machine import cores
from bench_workloads import WORKLOADS, experiment_config

_WORKLOADS = flags.DEFINE_list("workloads", ["W1", "W2", "W6"], "What to run: W1, W2, W6.")
_ROUNDS = flags.DEFINE_integer("rounds", 9, "Timed rounds of each contender; the median is reported.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "Write the results there.")
_WORKER = flags.DEFINE_list("worker", None, "Internal: contender, workload, clients and threads of this process.")

TRIAL_CLIENTS = 2
INSTALL = 'PyTorch is not installed; it is needed by this script alone: pip install -e ".[bench]"'


def images_of(name: str) -> tuple[tuple[int, ...], int]:
    """(shape of a row, rows of a client) of a workload with equal clients."""
    workload = WORKLOADS[name]
    settings = workload.data[1]
    return settings["shape"], settings["num_examples"] // workload.clients


def steps_of_client(name: str) -> int:
    """Local steps of a client."""
    return -(-images_of(name)[1] // WORKLOADS[name].batch)


def torch_model(name: str) -> Any:
    """The workload's model in PyTorch, channels first."""
    from torch import nn

    if name == "W1":
        convolutions = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
        widths = [12544, 128, 10]
    elif name == "W6":
        first = [nn.Conv2d(1, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
        convolutions = [*first, nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2)]
        widths = [400, 120, 84, 10]
    else:
        convolutions, widths = [], [784, 200, 10]
    dense = [part for pair in itertools.pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())][:-1]
    return nn.Sequential(*convolutions, nn.Flatten(), *dense)


def torch_clients(name: str, threads: int) -> Callable[[int], None]:
    """`train(clients)`, which trains so many clients one after the other in the faster of two layouts."""
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    torch.manual_seed(0)
    shape, rows = images_of(name)
    workload, (height, width, channels) = WORKLOADS[name], shape
    pixels = torch.randint(0, 256, (rows * TRIAL_CLIENTS, channels, height, width), dtype=torch.uint8)
    labels = torch.randint(0, 10, (len(pixels),))

    def trainer(layout: Any) -> Callable[[int], None]:
        model, images = torch_model(name).to(memory_format=layout), pixels.contiguous(memory_format=layout)
        received = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.SGD(model.parameters(), lr=workload.learning_rate)
        loss_of = torch.nn.CrossEntropyLoss()

        def train(clients: int) -> None:
            for client in range(clients):
                with torch.no_grad():
                    for p, start in zip(model.parameters(), received, strict=True):
                        p.copy_(start)
                first = rows * (client % TRIAL_CLIENTS)
                for places in (torch.randperm(rows) + first).split(workload.batch):
                    x = images[places].float().div_(255.0).sub_(0.5).div_(0.25)
                    optimizer.zero_grad()
                    loss_of(model(x), labels[places]).backward()
                    optimizer.step()

        return train

    trainers = [trainer(layout) for layout in (torch.contiguous_format, torch.channels_last)]
    seconds = []
    for train in trainers * 2:  # the first time warms up
        begun = time.perf_counter()
        train(TRIAL_CLIENTS)
        seconds.append(time.perf_counter() - begun)
    return trainers[0] if seconds[2] <= seconds[3] else trainers[1]


def fedjax8_rounds(name: str) -> Callable[[int], None]:
    """`train(clients)`, which runs a whole round, whatever the number; it has that many clients."""
    from fedjax8.train import set_up_devices

    set_up_devices(None)
    from fedjax8.build import build

    simulation = build(experiment_config(WORKLOADS[name])).simulation
    state = simulation.init()

    def train(clients: int) -> None:
        nonlocal state
        state, _ = simulation.run_round(state)

    return train


def serve(contender: str, name: str, clients: int, threads: int) -> None:
    """Trains once for every line that comes in, and answers with a line."""
    train = fedjax8_rounds(name) if contender == "fedjax8" else torch_clients(name, threads)
    train(clients)
    train(clients)
    print("ready", flush=True)
    for _ in sys.stdin:
        train(clients)
        print("done", flush=True)


class Contender:
    """Processes that train the clients of a round together."""

    def __init__(self, contender: str, name: str, shares: list[int], threads: int):
        self._processes = []
        for clients in shares:
            settings = f"--worker={contender},{name},{clients},{threads}"
            command = [sys.executable, os.path.abspath(__file__), settings]
            self._processes.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
            )
        self._wait()

    def _wait(self) -> None:
        for process in self._processes:
            if not process.stdout.readline():
                sys.exit("bench_torch: a process failed; its message is above")

    def round(self) -> float:
        """Seconds until all are done."""
        begun = time.perf_counter()
        for process in self._processes:
            process.stdin.write("go\n")
        self._wait()
        return time.perf_counter() - begun

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.stdin.close()
            process.wait()
            process.stdout.close()


def run_workload(name: str, rounds: int) -> dict[str, Any]:
    """Both sides in turn."""
    count, cohort = cores(), WORKLOADS[name].cohort
    shares = [cohort // count + (i < cohort % count) for i in range(min(count, cohort))]
    contenders = {
        "fedjax8": Contender("fedjax8", name, [cohort], 0),
        "torch_processes": Contender("torch", name, shares, 1),
        "torch_threads": Contender("torch", name, [cohort], count),
    }
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds):
        for contender, processes in contenders.items():
            times[contender].append(processes.round())
    for processes in contenders.values():
        processes.close()
    steps = cohort * steps_of_client(name)
    best = min(("torch_processes", "torch_threads"), key=lambda c: statistics.median(times[c]))
    ratios = [a / b for a, b in zip(times["fedjax8"], times[best], strict=True)]
    return {
        "workload": name,
        "cores": count,
        "rounds": rounds,
        "steps": steps,
        **{f"{c}_ms": 1e3 * statistics.median(seconds) / steps for c, seconds in times.items()},
        "best": best.removeprefix("torch_"),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
    }


def show(results: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    from rich.console import Console
    from rich.table import Table

    names = (
        "workload",
        "fedjax8 ms/step",
        "PyTorch processes",
        "PyTorch threads",
        "fedjax8 to the better",
        "low",
        "high",
    )
    table = Table(*names)
    for r in results:
        numbers = [f"{r[f'{c}_ms']:.3f}" for c in ("fedjax8", "torch_processes", "torch_threads")]
        table.add_row(r["workload"], *numbers, *(f"{r[k]:.2f}" for k in ("ratio", "ratio_low", "ratio_high")))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(argv: list[str]) -> None:
    """Runs every workload."""
    logging.set_verbosity(logging.WARNING)
    if _WORKER.value:
        contender, name, *numbers = _WORKER.value
        serve(contender, name, *map(int, numbers))
        return
    allowed = ("W1", "W2", "W6")
    if unknown := argv[1:] + [name for name in _WORKLOADS.value if name not in allowed]:
        sys.exit(f"bench_torch: unknown {', '.join(unknown)}; workloads are {', '.join(allowed)}")
    try:
        import torch  # noqa: F401
    except ImportError:
        sys.exit(f"bench_torch: {INSTALL}")
    results = [run_workload(name, _ROUNDS.value) for name in _WORKLOADS.value]
    show(results)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    app.run(main)
