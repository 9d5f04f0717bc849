#!/usr/bin/env python3
"""The runs, table and plot behind docs/studies/time.md: simulated seconds to an accuracy, by method and uplink.

    python scripts/time_study.py run --out=runs/time --data_dir=DIR
    python scripts/time_study.py run --out=runs/time --data_dir=DIR --methods=fp8,buffered --uplinks=0.2
    python scripts/time_study.py table --out=runs/time
    python scripts/time_study.py plot --out=runs/time --png=docs/studies/time.png

A cell is a method and an uplink; its seeds run side by side, as one program, and are kept as one JSON file. A cell that
is there is not run again.
"""

import itertools
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags, logging

_OUT = flags.DEFINE_string("out", "runs/time", "Folder of the cells.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
_METHODS = flags.DEFINE_list("methods", [], "Names in METHODS; all by default.")
_UPLINKS = flags.DEFINE_list("uplinks", ["0.2", "1", "10"], "Mbit/s of the median client.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of a cell.")
_PNG = flags.DEFINE_string("png", "time.png", "Where the plot goes.")

TARGET = 0.85
SMOOTH = 3
"""Number of evaluations, one after another, whose mean has to reach the target."""
METHODS = {
    "float32": "FedAvg, float32",
    "fp8": "FP8 UQ",
    "fedcode": "FedCode",
    "topk": "top-k 1 % with error feedback, FP8 down",
    "fda": "FDA, all 100 clients",
    "buffered": "FedBuff, FP8",
    "deadline": "FP8 UQ with a deadline",
}
ROUNDS = {"fda": 200, "fedcode": 250, "buffered": 300}
"""Most rounds of a run; 150 for the others."""
EVERY = {"buffered": 4}
"""Rounds between evaluations; 2 for the others."""
DEADLINE_QUANTILE = 0.8
"""Share of the clients who are in time by what is known before the run."""


def config_of(method: str, uplink: float) -> Any:
    """The config of a cell; `uplink` in Mbit/s."""
    from fedjax8.config import base_config, component, in_float32

    config = base_config()
    config.data, config.model = component("fashion_mnist"), component("mlp", hidden=(200,))
    config.num_clients, config.cohort_size = 100, 10
    config.partition = component("dirichlet", concentration=0.3)
    config.client.batch_size, config.client.epochs = 20, 1
    config.client.optimizer = component("sgd", learning_rate=0.1)
    config.system = component(
        "lognormal",
        step_seconds=0.05,
        spread=1.0,
        jitter=0.2,
        link_spread=0.5,
        latency=0.05,
        up_bandwidth=uplink * 1e6 / 8,
        down_bandwidth=5 * uplink * 1e6 / 8,
    )
    if method in ("float32", "fedcode", "fda", "topk"):
        in_float32(config)
    if method == "topk":
        config.algorithm = component("fedavg", payload="update")
        config.uplink = component("error_feedback", codec=component("topk"))
        config.downlink = component("fp8", clip="max")
    elif method == "fedcode":
        config.algorithm = component("fedcode")
    elif method == "fda":
        config.cohort_size = 100
        config.client.steps = 10
        config.algorithm = component("fda", monitor=component("linear"), theta=2.0)
    elif method == "buffered":
        config.algorithm = component("fedavg", payload="update")
        config.uplink = component("fp8", clip="max")
        config.participation = component("buffered", concurrency=20)
    return config


def with_deadline(uplink: float) -> tuple[Any, float]:
    """(the config of FP8 UQ with a deadline, its seconds): those in which `DEADLINE_QUANTILE` of the clients, with the
    rows of seed 0, are done by what is known before the run."""
    import numpy as np

    from fedjax8.build import build
    from fedjax8.config import component

    config = config_of("fp8", uplink)
    simulation = build(config, _DATA_DIR.value).simulation
    ids = np.arange(simulation.num_clients)
    seconds = simulation.participants.seconds(0, ids)
    at = float(np.quantile(seconds, DEADLINE_QUANTILE))
    config.dropout = component("deadline", seconds=at)
    return config, at


def reached(lines: list[dict[str, Any]]) -> int | None:
    """The place of the first line at which the mean of `SMOOTH` evaluations is at the target; None if none is."""
    accuracies = [line["test_accuracy"] for line in lines]
    for i in range(SMOOTH - 1, len(lines)):
        if statistics.fmean(accuracies[i - SMOOTH + 1 : i + 1]) >= TARGET:
            return i
    return None


def run_cell(method: str, uplink: float) -> dict[str, Any]:
    """For each seed of one cell, its log line at each evaluation, until all seeds have reached the target."""
    from fedjax8.build import build_seeds
    from fedjax8.engine.side_by_side import side_by_side

    begun, at = time.perf_counter(), None
    config, at = with_deadline(uplink) if method == "deadline" else (config_of(method, uplink), None)
    experiments = build_seeds(config, [int(s) for s in _SEEDS.value], _DATA_DIR.value)
    advance = side_by_side([e.simulation for e in experiments])
    states, seeds = [e.simulation.init() for e in experiments], [[] for _ in experiments]
    most, every = ROUNDS.get(method, 150), EVERY.get(method, 2)
    names = "round", "test_accuracy", "uplink_bytes", "downlink_bytes", "simulated_seconds", "waiting_share"
    while states[0].round < most and any(reached(lines) is None for lines in seeds):
        states, lines = advance(states, [min(every - states[0].round % every, most - states[0].round)] * len(states))
        if states[0].round % every:  # a call may do fewer rounds than asked for
            continue
        for experiment, state, own_lines, kept in zip(experiments, states, lines, seeds, strict=True):
            line = own_lines[-1] | experiment.simulation.evaluate(state, experiment.dataset.test)
            kept.append({name: line[name] for name in (*names, "wasted_bytes")})
    done = {"method": method, "uplink": uplink, "deadline": at, "seeds": seeds}
    return done | {"seconds": time.perf_counter() - begun}


def run() -> None:
    """Runs the cells that are not there, on one device."""
    import jax

    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    for method, uplink in itertools.product(_METHODS.value or METHODS, _UPLINKS.value):
        path = out / f"{method}-{uplink}.json"
        if path.exists():
            continue
        done = run_cell(method, float(uplink))
        part = path.with_suffix(".part")
        part.write_text(json.dumps(done))
        part.rename(path)
        end = at_target(done)
        print(f"{path.stem}: {end['text']} after {end['rounds']:.0f} rounds, {done['seconds']:.0f} s", flush=True)


def at_target(done: dict[str, Any]) -> dict[str, Any]:
    """Means over seeds at the target: seconds, their deviation, rounds, bytes both ways; infinite where a seed has not
    reached it."""
    places = [reached(lines) for lines in done["seeds"]]
    ends = [lines[-1 if place is None else place] for lines, place in zip(done["seeds"], places, strict=True)]
    seconds = [end["simulated_seconds"] for end in ends]
    missed = sum(place is None for place in places)
    mean = math.inf if missed else statistics.fmean(seconds)
    spread = statistics.stdev(seconds) if len(seconds) > 1 else 0.0
    text = f"{hours(mean)} ± {hours(spread)}"
    if missed:
        text = f"not reached by {missed} of {len(places)} seeds in {hours(statistics.fmean(seconds))}"
    both = statistics.fmean(end["uplink_bytes"] + end["downlink_bytes"] for end in ends)
    waiting = statistics.fmean(line["waiting_share"] for lines in done["seeds"] for line in lines)
    wasted = statistics.fmean(end["wasted_bytes"] / (end["uplink_bytes"] + end["downlink_bytes"]) for end in ends)
    accuracy = statistics.fmean(max(line["test_accuracy"] for line in lines) for lines in done["seeds"])
    rounds = statistics.fmean(end["round"] for end in ends)
    return {
        "seconds": mean, "text": text, "rounds": rounds, "bytes": both, "waiting": waiting, "best": accuracy,
        "wasted": wasted,
    }  # fmt: skip


def hours(seconds: float) -> str:
    """Seconds with three digits, in minutes or hours where they are many."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def stored() -> dict[tuple[str, float], dict[str, Any]]:
    """(method, uplink) of every cell that was run, to the cell."""
    cells = [json.loads(path.read_text()) for path in sorted(Path(_OUT.value).glob("*.json"))]
    return {(cell["method"], cell["uplink"]): cell for cell in cells}


def table() -> None:
    """Prints time, rounds, bytes, waste, waiting of every cell at the target, the time against float32's, and the best
    accuracy; each deadline below."""
    done = stored()
    for uplink in sorted({uplink for _, uplink in done}):
        ends = {m: at_target(done[m, uplink]) for m in METHODS if (m, uplink) in done}
        print(f"Uplink {uplink:g} Mbit/s:\n")
        print(
            f"| method | time to {TARGET} | against float32 | rounds | MB both ways | wasted | clients wait | best |\n"
            "|---|---|---|---|---|---|---|---|"
        )
        for method, end in ends.items():
            gain = ends["float32"]["seconds"] / end["seconds"] if math.isfinite(end["seconds"]) else math.nan
            faster = f"{gain:.3g}x" if math.isfinite(gain) else ""
            print(
                f"| {METHODS[method]} | {end['text']} | {faster} | {end['rounds']:.0f} | {end['bytes'] / 1e6:.3g} "
                f"| {end['wasted']:.1%} | {end['waiting']:.0%} | {end['best']:.4f} |"
            )
        at = [done[m, uplink]["deadline"] for m in ends if done[m, uplink]["deadline"]]
        print("".join(f"\nThe deadline is {hours(seconds)}.\n" for seconds in at))


def plot() -> None:
    """Accuracy against simulated time, a panel for each uplink; means over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = stored()
    uplinks = sorted({uplink for _, uplink in done})
    figure, axes = plt.subplots(1, len(uplinks), figsize=(5 * len(uplinks), 4), sharey=True, squeeze=False)
    for axis, uplink in zip(axes[0], uplinks, strict=True):
        for number, (method, label) in enumerate(METHODS.items()):
            if (method, uplink) not in done:
                continue
            seeds = done[method, uplink]["seeds"]
            length = min(map(len, seeds))
            mean = lambda name, seeds=seeds, i=0: statistics.fmean(lines[i][name] for lines in seeds)
            x = [mean("simulated_seconds", i=i) / 60 for i in range(length)]
            axis.plot(x, [mean("test_accuracy", i=i) for i in range(length)], label=label, lw=1.4, color=f"C{number}")
        axis.axhline(TARGET, color="0.6", lw=0.8, ls=":")
        axis.set(xscale="log", xlabel="simulated minutes", title=f"uplink {uplink:g} Mbit/s", ylim=(0.5, None))
        axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda value, _: f"{value:g}"))
        axis.grid(alpha=0.3, lw=0.4)
    axes[0][0].set_ylabel("test accuracy")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)
    figure.set_layout_engine("constrained")
    figure.savefig(_PNG.value, dpi=130)


def main(argv: list[str]) -> None:
    """Runs the word of the command line."""
    words = {"run": run, "table": table, "plot": plot}
    if len(argv) != 2 or argv[1] not in words:
        sys.exit(f"time_study: one of {', '.join(words)}; see --help")
    logging.set_verbosity(logging.WARNING)
    words[argv[1]]()


if __name__ == "__main__":
    app.run(main)
