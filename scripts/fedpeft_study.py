#!/usr/bin/env python3
"""The runs, tables and plot behind docs/studies/fedpeft.md: test accuracy against bytes when little is fine-tuned.

    python scripts/pretrain.py --out=runs/pretrained.safetensors --data_dir=DIR
    python scripts/fedpeft_study.py run --file=runs/pretrained.safetensors --out=runs/fedpeft --data_dir=DIR
    python scripts/fedpeft_study.py run --settings=dp,dp10 --methods=lora,full --seeds=0 ...
    python scripts/fedpeft_study.py table --out=runs/fedpeft
    python scripts/fedpeft_study.py plot --out=runs/fedpeft --png=docs/studies/fedpeft.png

A cell is a method in a setting, both words of configs/fedpeft.py (`lora+fp8` is two of them). Its seeds run side by
side as one program, those of private cells one after another, since each has its own noise. A cell is kept as one JSON
file, and one that is there is not run again.
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from absl import app, flags, logging

_OUT = flags.DEFINE_string("out", "runs/fedpeft", "Folder of the cells.")
_FILE = flags.DEFINE_string("file", "pretrained.safetensors", "File of scripts/pretrain.py.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder of the data sets.")
_METHODS = flags.DEFINE_list("methods", [], "Names in METHODS; all by default.")
_SETTINGS = flags.DEFINE_list("settings", ["homogeneous", "dirichlet0.5", "dirichlet0.1"], "Names in SETTINGS.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of a cell.")
_SET = flags.DEFINE_multi_string("set", [], "A setting that differs, such as rounds=10; may be repeated.")
_PNG = flags.DEFINE_string("png", "fedpeft.png", "Where the plot goes.")

CONFIG = Path(__file__).parents[1] / "configs" / "fedpeft.py"
METHODS = ("full", "head", "bias", "adapter", "prompt", "lora", "lora+fp8")
SETTINGS = ("homogeneous", "dirichlet0.5", "dirichlet0.1", "dp10", "dp", "little")
PRIVATE = ("dp", "dp10")
TITLES = {"dp": "epsilon 5", "dp10": "epsilon 10", "little": "a tenth of the data"}


def config_of(method: str, setting: str) -> Any:
    """The config of a cell."""
    from fedjax8.config import load_config, override

    config = load_config(f"{CONFIG}:{method.replace('+', ',')},{setting}")
    config.adapter.adapters[0].file = _FILE.value
    if "fp8" in method.split("+"):
        config.format = "e4m3fnuz"  # of the study's messages
    override(config, [one.partition("=")[::2] for one in _SET.value])
    return config


def run_seeds(config: Any, seeds: list[int]) -> list[dict[str, Any]]:
    """For each seed the number of trained parameters, and its log line at each evaluation."""
    from fedjax8 import trees
    from fedjax8.build import build_seeds
    from fedjax8.engine.side_by_side import side_by_side

    experiments = build_seeds(config, seeds, _DATA_DIR.value)
    advance, every = side_by_side([e.simulation for e in experiments]), config.eval_every
    states, lines = [e.simulation.init() for e in experiments], [[] for _ in experiments]
    while (done := states[0].round) < config.rounds:
        # A call may do fewer rounds than asked for.
        states, new_lines = advance(states, [min(every - done % every, config.rounds - done)] * len(states))
        if states[0].round % every and states[0].round < config.rounds:
            continue
        for experiment, state, own, kept in zip(experiments, states, new_lines, lines, strict=True):
            line = own[-1] | experiment.simulation.evaluate(state, experiment.dataset.test)
            names = ("round", "test_accuracy", "test_loss", "uplink_bytes", "downlink_bytes", "epsilon")
            kept.append({name: line[name] for name in names if name in line})
    trained = [trees.num_bytes(e.simulation.variables(s).params) // 4 for e, s in zip(experiments, states, strict=True)]
    return [
        {"seed": seed, "trained": count, "lines": own} for seed, count, own in zip(seeds, trained, lines, strict=True)
    ]


def run() -> None:
    """Runs the cells that are not there, on one device: on CPU one core, if no more is given to the process."""
    import jax

    out = Path(_OUT.value)
    jax.config.update("jax_compilation_cache_dir", str(out / "compiled"))
    out.mkdir(parents=True, exist_ok=True)
    seeds = [int(seed) for seed in _SEEDS.value]
    for setting in _SETTINGS.value:
        for method in _METHODS.value or METHODS:
            path, begun = out / f"{setting}-{method}.json", time.perf_counter()
            if path.exists():
                continue
            config = config_of(method, setting)
            groups = [[seed] for seed in seeds] if setting in PRIVATE else [seeds]
            found = [one for group in groups for one in run_seeds(config, group)]
            done = {"method": method, "setting": setting, "seeds": found, "seconds": time.perf_counter() - begun}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(done))
            part.rename(path)
            end = end_of(done)
            print(
                f"{path.stem}: {end['accuracy']:.4f} ± {end['spread']:.4f}, {end['bytes']:,.0f} bytes a message, "
                f"{done['seconds']:.0f} s",
                flush=True,
            )


def end_of(done: dict[str, Any]) -> dict[str, Any]:
    """A cell's accuracy after its last round and its deviation over seeds, and bytes: a message and a run."""
    accuracies = [seed["lines"][-1]["test_accuracy"] for seed in done["seeds"]]
    best = [max(line["test_accuracy"] for line in seed["lines"]) for seed in done["seeds"]]
    last = [seed["lines"][-1] for seed in done["seeds"]]
    total = statistics.fmean(line["uplink_bytes"] + line["downlink_bytes"] for line in last)
    return {
        "accuracy": statistics.fmean(accuracies),
        "spread": statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0,
        "best": statistics.fmean(best),
        "seeds": len(accuracies),
        "trained": done["seeds"][0]["trained"],
        "total": total,
        "bytes": statistics.fmean(line["uplink_bytes"] for line in last) / (last[0]["round"] * CLIENTS),
        "epsilon": max((line.get("epsilon", 0.0) for line in last), default=0.0),
    }


CLIENTS = 8
"""Clients a round, in every setting."""


def stored() -> dict[str, dict[str, dict[str, Any]]]:
    """Setting and method of every cell that was run, to its end and its curve: bytes so far and mean accuracy."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in sorted(Path(_OUT.value).glob("*.json")):
        done = json.loads(path.read_text())
        steps = zip(*(seed["lines"] for seed in done["seeds"]), strict=True)
        curve = [
            (
                statistics.fmean(line["uplink_bytes"] + line["downlink_bytes"] for line in lines),
                statistics.fmean(line["test_accuracy"] for line in lines),
            )
            for lines in steps
        ]
        found.setdefault(done["setting"], {})[done["method"]] = end_of(done) | {"curve": curve}
    return found


def table() -> None:
    """Prints a table for each setting: accuracy, its distance from full fine-tuning, and the share of its bytes."""
    for setting, ends in sorted(stored().items(), key=lambda pair: SETTINGS.index(pair[0])):
        print(f"{setting}:\n")
        print(
            "| method | seeds | accuracy | best round | minus full | numbers trained | bytes a message | of full | MB |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        full = ends.get("full")
        for method in (m for m in METHODS if m in ends):
            end = ends[method]
            away = f"{100 * (end['accuracy'] - full['accuracy']):+.1f}" if full else ""
            share = f"{100 * end['bytes'] / full['bytes']:.2f} %" if full else ""
            print(
                f"| {method} | {end['seeds']} | {end['accuracy']:.4f} ± {end['spread']:.4f} | {end['best']:.4f} "
                f"| {away} | {end['trained']:,} | {end['bytes']:,.0f} | {share} | {end['total'] / 1e6:.3g} |"
            )
        print()


def plot() -> None:
    """Test accuracy against bytes up and down, a panel for each setting."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = stored()
    settings = [setting for setting in SETTINGS if setting in found]
    columns = min(3, len(settings))
    rows = -(-len(settings) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.6 * columns, 3.9 * rows), squeeze=False, sharex=True, layout="constrained"
    )
    colors = {method: f"C{i}" for i, method in enumerate(METHODS)} | {"full": "k"}
    for axis, setting in zip(axes.flat, settings, strict=False):
        for method in (m for m in METHODS if m in found[setting]):
            end = found[setting][method]
            sent, accuracy = zip(*end["curve"], strict=True)
            axis.plot([x / 1e6 for x in sent], accuracy, color=colors[method], lw=1.2, alpha=0.7)
            axis.errorbar(
                sent[-1] / 1e6, accuracy[-1], end["spread"], fmt="o", ms=5, lw=1, color=colors[method], label=method
            )
        axis.set(xscale="log", title=TITLES.get(setting, setting))
        axis.grid(alpha=0.3, which="both", lw=0.4)
    for axis in axes[-1]:
        axis.set_xlabel("MB, both ways, all clients and rounds")
    for row in axes:
        row[0].set_ylabel("test accuracy")
    for axis in list(axes.flat)[len(settings) :]:
        axis.remove()
    axes[0][0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(_PNG.value, dpi=120)


def main(argv: list[str]) -> None:
    """Runs the action that the first argument names."""
    from fedjax8.errors import UserError

    logging.set_verbosity(logging.WARNING)
    actions = {"run": run, "table": table, "plot": plot}
    for given, known in ((_METHODS.value, METHODS), (_SETTINGS.value, SETTINGS)):
        unknown = sorted(set(given) - set(known))
        if unknown:
            sys.exit(f"fedpeft_study: unknown {', '.join(unknown)}; allowed are {', '.join(known)}")
    if len(argv) != 2 or argv[1] not in actions:
        sys.exit(f"fedpeft_study: give one of {', '.join(actions)}")
    try:
        actions[argv[1]]()
    except UserError as error:
        sys.exit(f"fedpeft_study: {error}")


if __name__ == "__main__":
    app.run(main)
