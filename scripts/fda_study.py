#!/usr/bin/env python3
"""The runs, tables and plots behind docs/studies/fda.md: bytes of each strategy to a target test accuracy.

    python scripts/fda_study.py run --out=runs/fda --data=DIR --strategies=linear,sketch --workers=5,30 \\
        --thetas=0.5,1.5,5 --splits=iid --target=0.985
    python scripts/fda_study.py table --out=runs/fda
    python scripts/fda_study.py plot --out=runs/fda --png=docs/studies/fda.png
    python scripts/fda_study.py trace --out=runs/fda --data=DIR --strategies=linear,sketch --workers=5 --thetas=1.5 \\
        --epochs=3 --png=docs/studies/fda-variance.png

A cell is a kind of images, a split, a number of workers, a strategy, a threshold and a seed; it is run epoch by epoch
until the mean model reaches the target or the most epochs are done, and kept as one JSON file. A cell that is there is
not run again. `trace` runs cells with all values of each step logged, and plots the variance of the models, which only
a simulator knows, under the monitors' estimates and the threshold.
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

_OUT = flags.DEFINE_string("out", "runs/fda", "Folder of the cells.")
_DATA_DIR = flags.DEFINE_string("data", None, "Folder of the data sets.")
_IMAGES = flags.DEFINE_enum("images", "mnist", ["mnist", "mnist_standardized"], "Divided by 255, or standardized.")
_STRATEGIES = flags.DEFINE_list("strategies", ["linear", "sketch", "synchronous", "fedadam"], "As in configs/fda.py.")
_WORKERS = flags.DEFINE_list("workers", ["5", "30"], "Numbers of workers.")
_THETAS = flags.DEFINE_list("thetas", ["0.5", "1", "1.5", "2", "3", "5", "7"], "Thresholds, of monitored strategies.")
_SPLITS = flags.DEFINE_list("splits", ["iid"], "As in configs/fda.py.")
_SEEDS = flags.DEFINE_list("study_seeds", ["0"], "Seeds.")
_TARGET = flags.DEFINE_float("target", 0.985, "Test accuracy that ends a run.")
_EPOCHS = flags.DEFINE_integer("epochs", 100, "Most epochs of a run.")
_PNG = flags.DEFINE_string("png", "fda.png", "Where plots go.")

CONFIG = Path(__file__).parents[1] / "configs" / "fda.py"
WITH_THETA = ("linear", "sketch", "naive", "gm", "exact")
GB = 1e9


def cells() -> list[dict[str, Any]]:
    """Every combination that the flags name; a strategy without a threshold has one cell for all of them."""
    grid = itertools.product(_SPLITS.value, _WORKERS.value, _STRATEGIES.value, _SEEDS.value)
    return [
        {
            "images": _IMAGES.value,
            "split": split,
            "workers": int(workers),
            "strategy": strategy,
            "theta": theta,
            "seed": int(seed),
        }
        for split, workers, strategy, seed in grid
        for theta in ([float(t) for t in _THETAS.value] if strategy in WITH_THETA else [None])
    ]


def file_of(cell: dict[str, Any]) -> Path:
    """Where a cell is kept."""
    theta = "" if cell["theta"] is None else f"-theta{cell['theta']:g}"
    name = f"{cell['images']}-{cell['split']}-K{cell['workers']}-{cell['strategy']}{theta}-seed{cell['seed']}.json"
    return Path(_OUT.value) / name


def experiment_of(cell: dict[str, Any], more: Sequence[tuple[str, str]] = ()) -> Any:
    """The cell, ready to run; `more` are further fields of its config."""
    from fedjax8.build import build
    from fedjax8.config import load_config, override

    config = load_config(f"{CONFIG}:{cell['images']},lenet5,{cell['strategy']},{cell['split']}")
    settings = [("seed", str(cell["seed"]))]
    if config.algorithm.name == "fda":
        settings.append(("algorithm.workers", str(cell["workers"])))
    else:
        settings += [("num_clients", str(cell["workers"])), ("cohort_size", str(cell["workers"]))]
    if cell["theta"] is not None:
        settings.append(("algorithm.theta", str(cell["theta"])))
    override(config, [*settings, *more])
    return build(config, _DATA_DIR.value)


def steps_of_an_epoch(experiment: Any) -> int:
    """Steps in which the largest worker sees as many rows as it has."""
    return -(-int(experiment.simulation.data.sizes.max()) // experiment.config.client.batch_size)


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """One cell, run: the cell with its `epochs`, a dict of the log of each."""
    experiment = experiment_of(cell)
    simulation, test = experiment.simulation, experiment.dataset.test
    state, epochs, begun = simulation.init(), [], time.perf_counter()
    per_epoch = steps_of_an_epoch(experiment)
    for _ in range(_EPOCHS.value):
        state, line = simulation.run_round(state)
        line |= simulation.evaluate(state, test)
        line.setdefault("steps", line["round"] * per_epoch)
        epochs.append(line)
        if line["test_accuracy"] >= _TARGET.value:
            break
    return cell | {"target": _TARGET.value, "epochs": epochs, "seconds": time.perf_counter() - begun}


def trace() -> None:
    """Plots estimate, variance and threshold over the steps of the cells' first epochs, one panel a cell."""
    import matplotlib
    import numpy as np

    set_up()
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [cell for cell in cells() if cell["theta"] is not None]
    figure, axes = plt.subplots(
        len(chosen), 1, figsize=(9, 2.9 * len(chosen)), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, cell in zip(axes[:, 0], chosen, strict=True):
        per_epoch = steps_of_an_epoch(experiment_of(cell))
        measures = [("algorithm.record_steps", "True"), ("algorithm.measure_variance", "True")]
        simulation = experiment_of(cell, [("client.steps", str(per_epoch)), *measures]).simulation
        state, lines = simulation.init(), []
        for _ in range(_EPOCHS.value):
            state, line = simulation.run_round(state)
            lines.append(line)
        estimate, variance, synchronized = (
            np.concatenate([np.asarray(line[name]) for line in lines])
            for name in ("variance_estimates", "variances", "synchronized")
        )
        steps = np.arange(1, len(estimate) + 1)
        (places,) = np.nonzero(synchronized)
        axis.plot(steps, estimate, color="C1", lw=0.9, label="H, the monitor's estimate")
        axis.plot(steps, variance, color="C0", lw=1.1, label="variance of the models")
        axis.axhline(cell["theta"], color="0.3", lw=0.9, ls="--", label="Theta")
        axis.plot(steps[places], np.zeros(len(places)), "|", color="0.2", ms=9, label="synchronization")
        axis.set(ylabel="squared distance", ylim=(0, None), xlim=(0, len(steps)))
        axis.set_title(f"{cell['strategy']}, K = {cell['workers']}, {cell['split']}", fontsize=10)
        axis.grid(alpha=0.3, lw=0.4)
        print(
            f"{file_of(cell).stem}: {len(places)} synchronizations in {len(steps)} steps, "
            f"mean of H over the variance {np.mean(estimate / np.maximum(variance, 1e-12)):.3g}"
        )
    axes[-1, 0].set_xlabel("step")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=4, frameon=False)
    figure.savefig(_PNG.value, dpi=130)


def set_up() -> None:
    """Sets up a device for each core, and a folder for compiled programs."""
    import jax

    from fedjax8.train import set_up_devices

    set_up_devices(None)
    jax.config.update("jax_compilation_cache_dir", str(Path(_OUT.value) / "compiled"))


def run() -> None:
    """Runs the cells that are not there."""
    set_up()
    Path(_OUT.value).mkdir(parents=True, exist_ok=True)
    for cell in cells():
        path = file_of(cell)
        if path.exists():
            continue
        done = run_cell(cell)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(done))
        part.rename(path)
        reached = done["epochs"][-1]["test_accuracy"] >= _TARGET.value
        end = end_of(done)
        print(
            f"{path.stem}: {'reached' if reached else 'not reached'} {_TARGET.value} after {end['steps']} steps, "
            f"{end['gigabytes']:.3g} GB (authors' formula), {end['strict']:.3g} GB (all bytes), "
            f"{end['syncs']} synchronizations, {done['seconds']:.0f} s",
            flush=True,
        )


def end_of(done: dict[str, Any]) -> dict[str, Any]:
    """GB that a cell had sent at its end, by the authors' formula and in all; steps and synchronizations."""
    last = done["epochs"][-1]
    strict = last["uplink_bytes"] + last["downlink_bytes"]
    if "compat_model_bytes" in last:
        authors = last["compat_model_bytes"] + last["compat_monitor_bytes"]
    else:  # one exchange of models a round, and one more
        authors = strict * (1 + 1 / last["round"])
    return {
        "gigabytes": authors / GB,
        "strict": strict / GB,
        "steps": last["steps"],
        "syncs": last.get("syncs", last["round"]),
        "reached": last["test_accuracy"] >= done["target"],
    }


def stored() -> list[dict[str, Any]]:
    """All cells that were run."""
    return [json.loads(path.read_text()) for path in sorted(Path(_OUT.value).glob("*.json"))]


def table() -> None:
    """Prints, for all images, splits, strategies and numbers of workers, medians over thresholds and seeds of runs that
    reached the target; and the ratio of Synchronous's bytes to theirs."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for done in stored():
        groups.setdefault((done["images"], done["split"], done["workers"], done["strategy"]), []).append(done)
    medians = {}
    print(
        "| images | split | K | strategy | reached | GB min | GB median | GB max | all bytes, GB | steps | syncs "
        "| Sync / this |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for key in sorted(groups, key=lambda g: (*g[:3], g[3] != "synchronous", g[3])):
        head = "| " + " | ".join(map(str, key))
        ends = [end_of(done) for done in groups[key]]
        good = [end for end in ends if end["reached"]]
        if not good:
            print(f"{head} | 0/{len(ends)} | | | | | | | |")
            continue
        middle = {name: statistics.median(end[name] for end in good) for name in good[0] if name != "reached"}
        medians[key] = middle["gigabytes"]
        synchronous = medians.get((*key[:3], "synchronous"))
        ratio = f"{synchronous / middle['gigabytes']:.1f}" if synchronous else ""
        sizes = [end["gigabytes"] for end in good]
        print(
            f"{head} | {len(good)}/{len(ends)} | {min(sizes):.3g} "
            f"| {middle['gigabytes']:.3g} | {max(sizes):.3g} | {middle['strict']:.3g} | {middle['steps']:.0f} "
            f"| {middle['syncs']:.0f} | {ratio} |"
        )


def plot() -> None:
    """Accuracy against bytes for every strategy, a panel for each kind of images, split and number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = stored()
    panels = sorted({(d["images"], d["split"], d["workers"]) for d in done})
    colors = {name: f"C{i}" for i, name in enumerate(sorted({d["strategy"] for d in done}))}
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(4.2 * columns, 3.7 * rows),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, panel in zip(axes.flat, panels, strict=False):
        images, split, workers = panel
        for d in done:
            if (d["images"], d["split"], d["workers"]) != panel:
                continue
            sent = [end_of(d | {"epochs": d["epochs"][: i + 1]})["gigabytes"] for i in range(len(d["epochs"]))]
            errors = [1 - line["test_accuracy"] for line in d["epochs"]]
            axis.plot(sent, errors, color=colors[d["strategy"]], alpha=0.7, lw=1.2)
            axis.plot(sent[-1], errors[-1], "o", color=colors[d["strategy"]], ms=4)
        axis.axhline(1 - done[0]["target"], color="0.5", lw=0.8, ls="--")
        axis.set(xscale="log", yscale="log")
        axis.set_title(f"{images}, {split}, K = {workers}", fontsize=10)
        axis.grid(alpha=0.3, which="both", lw=0.4)
    figure.supxlabel("GB sent by all (authors' formula)", fontsize=10)
    figure.supylabel("test error of the mean model", fontsize=10)
    handles = [plt.Line2D([], [], color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False)
    figure.savefig(_PNG.value, dpi=130)


def main(argv: list[str]) -> None:
    """Runs the action that the first argument names."""
    logging.set_verbosity(logging.WARNING)
    actions = {"run": run, "table": table, "plot": plot, "trace": trace}
    if len(argv) != 2 or argv[1] not in actions:
        sys.exit(f"fda_study: give one of {', '.join(actions)}")
    actions[argv[1]]()


if __name__ == "__main__":
    app.run(main)
