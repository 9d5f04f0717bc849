#!/usr/bin/env python3
"""The runs, tables and plots behind docs/studies/fda.md: what each strategy sends until a test accuracy is reached.

    python scripts/fda_study.py run --out=runs/fda --data=DIR --strategies=linear,sketch --workers=5,30 \\
        --thetas=0.5,1.5,5 --splits=iid --target=0.985
    python scripts/fda_study.py table --out=runs/fda
    python scripts/fda_study.py plot --out=runs/fda --png=docs/studies/fda.png

A cell is a strategy, a number of workers, a threshold, a split and a seed; it is run epoch by epoch until the mean
model reaches the target or the most epochs are done, and kept as one JSON file. A cell that is there is not run again.
"""

import itertools
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags, logging

_OUT = flags.DEFINE_string("out", "runs/fda", "Folder of the cells.")
_DATA_DIR = flags.DEFINE_string("data", None, "Folder of the data sets.")
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
        {"split": split, "workers": int(workers), "strategy": strategy, "theta": theta, "seed": int(seed)}
        for split, workers, strategy, seed in grid
        for theta in ([float(t) for t in _THETAS.value] if strategy in WITH_THETA else [None])
    ]


def file_of(cell: dict[str, Any]) -> Path:
    """Where a cell is kept."""
    theta = "" if cell["theta"] is None else f"-theta{cell['theta']:g}"
    return Path(_OUT.value) / f"{cell['split']}-K{cell['workers']}-{cell['strategy']}{theta}-seed{cell['seed']}.json"


def run_cell(cell: dict[str, Any]) -> dict[str, Any]:
    """Runs one cell: the cell with its `epochs`, a dict of what was logged for each."""
    from fedjax8.build import build
    from fedjax8.config import load_config, override

    config = load_config(f"{CONFIG}:mnist,lenet5,{cell['strategy']},{cell['split']}")
    settings = [("seed", str(cell["seed"]))]
    if config.algorithm.name == "fda":
        settings.append(("algorithm.workers", str(cell["workers"])))
    else:
        settings += [("num_clients", str(cell["workers"])), ("cohort_size", str(cell["workers"]))]
    if cell["theta"] is not None:
        settings.append(("algorithm.theta", str(cell["theta"])))
    override(config, settings)
    experiment = build(config, _DATA_DIR.value)
    simulation, test = experiment.simulation, experiment.dataset.test
    state, epochs, begun = simulation.init(), [], time.perf_counter()
    per_epoch = -(-int(experiment.clients.sizes.max()) // config.client.batch_size)
    for _ in range(_EPOCHS.value):
        state, line = simulation.run_round(state)
        line |= simulation.evaluate(state, test)
        line.setdefault("steps", line["round"] * per_epoch)
        epochs.append(line)
        if line["test_accuracy"] >= _TARGET.value:
            break
    return cell | {"target": _TARGET.value, "epochs": epochs, "seconds": time.perf_counter() - begun}


def run() -> None:
    """Runs the cells that are not there."""
    import jax

    from fedjax8.train import set_up_devices

    set_up_devices(None)
    jax.config.update("jax_compilation_cache_dir", str(Path(_OUT.value) / "compiled"))
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
    """What a cell had sent at its end, in GB: by the authors' formula and all of it; steps and synchronizations."""
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
    """Prints, for every split, strategy and number of workers, medians over thresholds and seeds of runs that reached
    the target; and the ratio of what Synchronous sends to it."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for done in stored():
        groups.setdefault((done["split"], done["workers"], done["strategy"]), []).append(done)
    medians = {}
    print(
        "| split | K | strategy | reached | GB min | GB median | GB max | all bytes, GB | steps | syncs | Sync / this |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for split, workers, strategy in sorted(groups, key=lambda g: (g[0], g[1], g[2] != "synchronous", g[2])):
        ends = [end_of(done) for done in groups[split, workers, strategy]]
        good = [end for end in ends if end["reached"]]
        if not good:
            print(f"| {split} | {workers} | {strategy} | 0/{len(ends)} | | | | | | | |")
            continue
        middle = {name: statistics.median(end[name] for end in good) for name in good[0] if name != "reached"}
        medians[split, workers, strategy] = middle["gigabytes"]
        synchronous = medians.get((split, workers, "synchronous"))
        ratio = f"{synchronous / middle['gigabytes']:.1f}" if synchronous else ""
        sizes = [end["gigabytes"] for end in good]
        print(
            f"| {split} | {workers} | {strategy} | {len(good)}/{len(ends)} | {min(sizes):.3g} "
            f"| {middle['gigabytes']:.3g} | {max(sizes):.3g} | {middle['strict']:.3g} | {middle['steps']:.0f} "
            f"| {middle['syncs']:.0f} | {ratio} |"
        )


def plot() -> None:
    """Accuracy against bytes for every strategy, a panel for each split and number of workers."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    done = stored()
    panels = sorted({(d["split"], d["workers"]) for d in done})
    colors = {name: f"C{i}" for i, name in enumerate(sorted({d["strategy"] for d in done}))}
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5 * len(panels), 4.2), sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (split, workers) in zip(axes[0], panels, strict=True):
        for d in done:
            if (d["split"], d["workers"]) != (split, workers):
                continue
            sent = [end_of(d | {"epochs": d["epochs"][: i + 1]})["gigabytes"] for i in range(len(d["epochs"]))]
            errors = [1 - line["test_accuracy"] for line in d["epochs"]]
            axis.plot(sent, errors, color=colors[d["strategy"]], alpha=0.7, lw=1.2)
            axis.plot(sent[-1], errors[-1], "o", color=colors[d["strategy"]], ms=4)
        axis.axhline(1 - done[0]["target"], color="0.5", lw=0.8, ls="--")
        axis.set(
            xscale="log", yscale="log", xlabel="GB sent by all (authors' formula)", title=f"{split}, K = {workers}"
        )
        axis.grid(alpha=0.3, which="both", lw=0.4)
    axes[0][0].set_ylabel("test error of the mean model")
    handles = [plt.Line2D([], [], color=color, label=name) for name, color in colors.items()]
    axes[0][-1].legend(handles=handles, frameon=False)
    figure.savefig(_PNG.value, dpi=130)


def main(argv: list[str]) -> None:
    """Does what the first argument says."""
    logging.set_verbosity(logging.WARNING)
    actions = {"run": run, "table": table, "plot": plot}
    if len(argv) != 2 or argv[1] not in actions:
        sys.exit(f"fda_study: give one of {', '.join(actions)}")
    actions[argv[1]]()


if __name__ == "__main__":
    app.run(main)
