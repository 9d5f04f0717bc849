#!/usr/bin/env python3
"""The runs, table and plot behind docs/studies/codecs.md: test accuracy against bytes for every codec, and FedCode.

    python scripts/codecs_study.py run --out=runs/codecs --data_dir=DIR
    python scripts/codecs_study.py run --out=runs/codecs --data_dir=DIR --methods=topk1,sign --splits=iid
    python scripts/codecs_study.py table --out=runs/codecs
    python scripts/codecs_study.py plot --out=runs/codecs --png=docs/studies/codecs.png

A cell is a method and a split; its seeds run side by side, as one program, and are kept as one JSON file. A cell that
is there is not run again.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging

_OUT = flags.DEFINE_string("out", "runs/codecs", "Folder of the cells.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
_METHODS = flags.DEFINE_list("methods", [], "Names in METHODS; all by default.")
_SPLITS = flags.DEFINE_list("splits", ["iid", "dirichlet"], "iid, or dirichlet with concentration 0.3.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of a cell.")
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Rounds of a run; evaluated every second one.")
_PNG = flags.DEFINE_string("png", "codecs.png", "Where the plot goes.")

SMOOTH = 5
"""Number of last evaluations of a run that are averaged to its accuracy."""
GRID = "e4m3fnuz"
"""The 8-bit format of the study's messages."""
FP8_DOWN = {"name": "fp8", "clip": "max"}
SPARSE_FP8 = {"name": "chain", "codecs": ({"name": "topk"}, {"name": "fp8", "clip": "max", "min_ndim": 1})}
PLAIN = {
    "none": {"name": "none"},
    "fp8": {"name": "fp8", "clip": "max"},
    "block_fp8": {"name": "block_fp8"},
    "narrow": {"name": "narrow"},
    "uniform8": {"name": "uniform"},
    "uniform4": {"name": "uniform", "bits": 4},
    "terngrad": {"name": "terngrad"},
    "rotated4": {"name": "rotated"},
    "drive": {"name": "drive"},
    "eden2": {"name": "eden"},
    "randomk10": {"name": "randomk", "share": 0.1},
    "evofed": {"name": "evofed", "members": 32},
    "count_sketch": {"name": "count_sketch", "columns": 3000, "keep": 1590},
}
"""Uplink codecs that are used as they are: unbiased ones, and those published without error feedback."""
WITH_FEEDBACK = {
    "adaptive": {"name": "adaptive"},
    "codebook16": {"name": "codebook", "clusters": 16},
    "sign": {"name": "sign"},
    "drive_ef": {"name": "drive", "scale": "min_error"},
    "topk1": {"name": "topk"},
    "topk0.1": {"name": "topk", "share": 0.001},
    "topk1_fp8": SPARSE_FP8,
    "randomk1": {"name": "randomk", "scaled": False},
    "powersgd2": {"name": "powersgd"},
}
"""Biased ones, inside `error_feedback`."""
FEDCODE = {"fedcode": {}, "fedcode_stagger": {"stagger": True}, "fedcode_1_1": {"down_period": 1, "up_period": 1}}
"""Settings of FedCode, whose messages are its own both ways."""
METHODS = ("float32", *PLAIN, *WITH_FEEDBACK, *FEDCODE)


def components(value: Any) -> Any:
    """Nested settings as components of a config."""
    from fedjax8.config import component

    if isinstance(value, dict):
        return component(**{name: components(v) for name, v in value.items()})
    return tuple(map(components, value)) if isinstance(value, tuple) else value


def config_of(method: str, split: str) -> Any:
    """The config of a cell."""
    from fedjax8.config import base_config, component, in_float32

    config = in_float32(base_config())
    config.data, config.model = component("fashion_mnist"), component("mlp", hidden=(200,))
    config.num_clients, config.cohort_size = 100, 10
    config.partition = component("iid") if split == "iid" else component("dirichlet", concentration=0.3)
    config.client.batch_size, config.client.epochs = 20, 1
    config.client.optimizer = component("sgd", learning_rate=0.1)
    if method in FEDCODE:
        config.algorithm = component("fedcode", **FEDCODE[method])
        return config
    config.algorithm = component("fedavg", payload="update")
    if method != "float32":
        config.format, config.downlink = GRID, components(FP8_DOWN)
    if method in PLAIN:
        config.uplink = components(PLAIN[method])
    if method in WITH_FEEDBACK:
        config.uplink = components({"name": "error_feedback", "codec": WITH_FEEDBACK[method]})
    return config


def run_cell(method: str, split: str) -> dict[str, Any]:
    """For each seed of one cell, its log line at each evaluation."""
    from fedjax8.build import build_seeds
    from fedjax8.engine.side_by_side import side_by_side

    begun = time.perf_counter()
    experiments = build_seeds(config_of(method, split), [int(s) for s in _SEEDS.value], _DATA_DIR.value)
    advance = side_by_side([e.simulation for e in experiments])
    states, seeds = [e.simulation.init() for e in experiments], [[] for _ in experiments]
    while (done := states[0].round) < _ROUNDS.value:
        # A call may do fewer rounds than asked for.
        states, lines = advance(states, [min(2 - done % 2, _ROUNDS.value - done)] * len(states))
        if states[0].round % 2 and states[0].round < _ROUNDS.value:
            continue
        for experiment, state, own_lines, kept in zip(experiments, states, lines, seeds, strict=True):
            line = own_lines[-1] | experiment.simulation.evaluate(state, experiment.dataset.test)
            kept.append({name: line[name] for name in ("round", "test_accuracy", "uplink_bytes", "downlink_bytes")})
    return {"method": method, "split": split, "seeds": seeds, "seconds": time.perf_counter() - begun}


def run() -> None:
    """Runs the cells that are not there, on one device: on CPU one core, if no more is given to the process."""
    import jax

    out = Path(_OUT.value)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    out.mkdir(parents=True, exist_ok=True)
    for method, split in itertools.product(_METHODS.value or METHODS, _SPLITS.value):
        path = out / f"{split}-{method}.json"
        if path.exists():
            continue
        done = run_cell(method, split)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(done))
        part.rename(path)
        end = end_of(done)
        print(f"{path.stem}: {end['accuracy']:.4f}, {end['both'] / 1e6:.3g} MB, {done['seconds']:.0f} s", flush=True)


def end_of(done: dict[str, Any]) -> dict[str, float]:
    """A cell's accuracy and its deviation over seeds, and mean bytes a seed: up, down and both ways."""
    accuracies = [statistics.fmean(line["test_accuracy"] for line in seed[-SMOOTH:]) for seed in done["seeds"]]
    up, down = (statistics.fmean(s[-1][f"{way}link_bytes"] for s in done["seeds"]) for way in ("up", "down"))
    spread = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return {"accuracy": statistics.fmean(accuracies), "spread": spread, "up": up, "down": down, "both": up + down}


def stored() -> dict[tuple[str, str], dict[str, float]]:
    """(split, method) of every cell that was run, to its results at the end."""
    cells = [json.loads(path.read_text()) for path in sorted(Path(_OUT.value).glob("*.json"))]
    return {(cell["split"], cell["method"]): end_of(cell) for cell in cells}


def front(ends: dict[str, dict[str, float]], way: str) -> list[str]:
    """Methods that no other one beats in accuracy with as few bytes, by rising bytes."""
    best, kept = -1.0, []
    for method in sorted(ends, key=lambda m: (ends[m][way], -ends[m]["accuracy"])):
        if ends[method]["accuracy"] > best:
            best = ends[method]["accuracy"]
            kept.append(method)
    return kept


def table() -> None:
    """Prints accuracy and bytes of every cell, and their fraction of float32's bytes."""
    done = stored()
    for split in sorted({split for split, _ in done}, reverse=True):
        ends = {m: done[split, m] for m in METHODS if (split, m) in done}
        fronts = {way: front(ends, way) for way in ("up", "both")}
        print(f"{split}:\n")
        print("| method | accuracy | MB up | MB down | fewer bytes up | fewer bytes both ways | on the front |")
        print("|---|---|---|---|---|---|---|")
        for method, end in ends.items():
            first = ends["float32"]
            where = ", ".join({"up": "up", "both": "both ways"}[way] for way in fronts if method in fronts[way])
            print(
                f"| {method} | {end['accuracy']:.4f} ± {end['spread']:.4f} | {end['up'] / 1e6:.3g} "
                f"| {end['down'] / 1e6:.3g} | {first['up'] / end['up']:.3g}x | {first['both'] / end['both']:.3g}x "
                f"| {where} |"
            )
        print()


LOW = 0.5
"""Accuracies below this are drawn at the lower edge, with their value in their name."""


def spaced(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in [0, 1], at least `gap` apart, as near to the `wanted` ones, which rise, as least squares has them."""
    blocks: list[list[float]] = []  # neighbors that have to touch: their sum of wanted starts, and how many they are
    for i, place in enumerate(wanted):
        blocks.append([place - i * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    starts = [total / count for total, count in blocks for _ in range(int(count))]
    last = 1 - (len(starts) - 1) * gap
    return [min(max(start, 0.0), last) + i * gap for i, start in enumerate(starts)]


def label(axis: Any, points: dict[str, tuple[float, float]], kept: Sequence[str], names: dict[str, str]) -> None:
    """Names over the plot, in the order of the points from left to right, each tied to its point by a thin line."""
    order = sorted(points, key=lambda m: (points[m][0], -points[m][1]))
    to_axes = axis.transData + axis.transAxes.inverted()
    places = spaced([float(to_axes.transform(points[m])[0]) for m in order], 0.034)
    for place, method in zip(places, order, strict=True):
        axis.annotate(
            names[method],
            points[method],
            xytext=(place, 1.08),
            textcoords="axes fraction",
            rotation=90,
            ha="center",
            va="bottom",
            fontsize=8.5,
            weight="bold" if method in kept else "normal",
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": "0.6", "shrinkA": 1, "shrinkB": 3, "relpos": (0.5, 0)},
        )


def plot() -> None:
    """Accuracy against bytes, up and both ways, a row for each split, with the Pareto front."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = stored()
    splits = sorted({split for split, _ in done}, reverse=True)
    figure, axes = plt.subplots(
        len(splits), 2, figsize=(14, 6 * len(splits)), sharey="row", squeeze=False, layout="constrained"
    )
    groups = {"C0": PLAIN, "C1": WITH_FEEDBACK, "C2": FEDCODE, "k": {"float32": {}}}
    for row, split in zip(axes, splits, strict=True):
        ends = {m: done[split, m] for m in METHODS if (split, m) in done}
        floor = min((end["accuracy"] - end["spread"] for end in ends.values() if end["accuracy"] >= LOW), default=0.0)
        bottom = floor - 0.02
        height = {m: max(end["accuracy"], bottom) for m, end in ends.items()}
        names = {m: m if height[m] > bottom else f"{m}: {end['accuracy']:.2f}" for m, end in ends.items()}
        for axis, way, title in zip(row, ("up", "both"), ("up", "both ways"), strict=True):
            kept = front(ends, way)
            axis.plot([ends[m][way] / 1e6 for m in kept], [height[m] for m in kept], color="0.7", zorder=0)
            for color, group in groups.items():
                shown = [m for m in group if m in ends]
                axis.errorbar(
                    [ends[m][way] / 1e6 for m in shown],
                    [height[m] for m in shown],
                    [ends[m]["spread"] if height[m] > bottom else 0.0 for m in shown],
                    fmt="o", ms=5, lw=1, color=color, clip_on=False,
                )  # fmt: skip
            axis.set(xscale="log", xlabel=f"MB {title}, all clients and rounds", ylim=(bottom, None))
            axis.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
            axis.xaxis.set_minor_formatter(matplotlib.ticker.LogFormatter(minor_thresholds=(1, 0.5)))
            axis.grid(alpha=0.3, which="both", lw=0.4)
            label(axis, {m: (ends[m][way] / 1e6, height[m]) for m in ends}, kept, names)
        row[0].set_ylabel(f"test accuracy, {split}")
    labels = {"C0": "as it is", "C1": "with error feedback", "C2": "FedCode", "k": "float32 both ways"}
    handles = [plt.Line2D([], [], marker="o", ls="", color=c, label=text) for c, text in labels.items()]
    handles.append(plt.Line2D([], [], color="0.7", label="Pareto front (names in bold)"))
    axes[0][1].legend(handles=handles, frameon=False, loc="lower right")
    figure.savefig(_PNG.value, dpi=100)


def main(argv: list[str]) -> None:
    """Runs the action that the first argument names."""
    logging.set_verbosity(logging.WARNING)
    actions = {"run": run, "table": table, "plot": plot}
    unknown = sorted(set(_METHODS.value) - set(METHODS))
    if len(argv) != 2 or argv[1] not in actions or unknown:
        what = f"unknown {', '.join(unknown)}; methods are {', '.join(METHODS)}" if unknown else ", ".join(actions)
        sys.exit(f"codecs_study: {what if unknown else 'give one of ' + what}")
    actions[argv[1]]()


if __name__ == "__main__":
    app.run(main)
