#!/usr/bin/env python3
"""Times whole rounds against two floors that this machine's own matrix multiplication sets.

    python scripts/bench.py --workloads=W1,W2 --json=bench.json
    python scripts/bench.py --workloads=W6 --precision=float32,fp8
    python scripts/bench.py --workloads=W2 --compare=config.executor.chunk=4 --compare="config.model.hidden=(90,90)"
    python scripts/bench.py --codecs
    python scripts/bench.py --codecs=fp8,topk --rounds=3 --json=codecs.json

`bench_workloads.py` defines W1 to W7, `bench_floor.py` the floors. Each workload runs in a process of
its own, so that its peak memory is its own. Several variants, by `--precision` or `--compare`, take turns round by
round in one process; each is compared with the first pair by pair, and the peak is that of all together. `--compare`
may be given several times, each with one or more `config.FIELD=VALUE`, quoted where a value has spaces in it; they are
set on top of the first precision. "to floor", "to shape floor" and "to first" are medians of ratios, each round's own.

`--codecs` measures codecs instead, all or those named: see `bench_codecs.py`; with `--rounds=0` without W1's rounds.

Rounds run one by one. Two are run before the clock starts, of which the first compiles.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bench_codecs
from absl import app, flags, logging
from bench_codecs import CODECS
from bench_floor import matmul_clock, products_of, shape_floor
from bench_machine import in_own_process, peak_memory_bytes
from bench_workloads import PRECISIONS, WORKLOADS, PreparedRun, Variant, experiment_config, prepare, variants

_WORKLOADS = flags.DEFINE_list("workloads", ["W1", "W2"], f"What to run: {', '.join(WORKLOADS)}, or all.")
_PRECISION = flags.DEFINE_list(
    "precision", ["float32"], "float32, fp8 (QAT and FP8 messages both ways), or both in turn."
)
_COMPARE = flags.DEFINE_multi_string("compare", [], 'Overrides to run in turn: "config.FIELD=VALUE ..."')
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds; the median is reported.", lower_bound=0)
_CODECS = flags.DEFINE_list("codecs", None, f"Measure codecs: {', '.join(CODECS)}, or all.")
_CHUNK = flags.DEFINE_integer("chunk", 0, "Clients vmapped at once; 0 for the machine's default.", lower_bound=0)
_JSON = flags.DEFINE_string("json", None, "Write the results there.")
_WORKER = flags.DEFINE_bool("worker", False, "Internal: run one workload in this process.")

COMPILE_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
}


def floor_of(run: PreparedRun) -> tuple[int, Any]:
    """(multiply-adds of a sample, its shape floor)."""
    import jax

    from fedjax8 import trees

    experiment = run.experiment
    row = {n: jax.ShapeDtypeStruct((1, *c.shape[1:]), c.dtype) for n, c in experiment.dataset.train.items()}
    row_bytes = sum(c.dtype.itemsize * c.size for c in row.values())
    row["mask"] = jax.ShapeDtypeStruct((1,), "float32")
    products = products_of(experiment.simulation.model, run.variables, row)
    parameters = trees.float32_bytes(run.variables.params) // 4
    shapes = products, experiment.simulation.plan.batch_size, run.chunk, parameters, row_bytes
    return sum(p.training_multiply_adds for p in products), shapes


def run_workload(name: str, chosen: Sequence[Variant], rounds: int, chunk: int) -> list[dict[str, Any]]:
    """Measures one workload in this process, in each variant, call by call in turn."""
    from fedjax8.train import set_up_devices

    set_up_devices(None)
    import jax

    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append(seconds) if event in COMPILE_EVENTS else None
    )
    runs, compile_seconds = [], []
    for variant in chosen:
        run = prepare(experiment_config(WORKLOADS[name], variant.precision, variant.overrides, chunk))
        compiling.clear()
        run.one_call()
        compile_seconds.append(sum(compiling))
        run.one_call()
        runs.append(run)
    clock = matmul_clock()
    works = [floor_of(run) for run in runs]
    timed, floors, before = [[] for _ in runs], [[] for _ in runs], clock()
    for _ in range(rounds):
        for i, run in enumerate(runs):
            timed[i].append(run.one_call())
            after = clock()
            floors[i].append(2 * works[i][0] * timed[i][-1].samples / (before + after))
            before = after
    peak = peak_memory_bytes()
    shaped = []  # (products, memory) in units of the floor
    for work, shapes in works:
        before, seconds, after = clock(), shape_floor(*shapes), clock()
        shaped.append([part * (before + after) / 2 / work for part in seconds])

    def result(i: int) -> dict[str, Any]:
        config, floor = runs[i].experiment.config, statistics.median(floors[i])
        to_floor = statistics.median(r.seconds / f for r, f in zip(timed[i], floors[i], strict=True))
        return {
            "workload": name,
            "variant": chosen[i].name,
            "platform": jax.default_backend(),
            "device_kind": jax.local_devices()[0].device_kind,
            "devices": jax.local_device_count(),
            "chunk": runs[i].chunk,
            "rounds": rounds,
            "seconds_per_round": statistics.median(r.seconds for r in timed[i]),
            "clients_per_second": statistics.median(config.cohort_size / r.seconds for r in timed[i]),
            "samples_per_second": statistics.median(r.samples / r.seconds for r in timed[i]),
            "samples_per_round": statistics.median(r.samples for r in timed[i]),
            "padding": statistics.median(r.padding for r in timed[i]),
            "floor_seconds": floor,
            "floor_ratio": to_floor,
            "shape_products_seconds": floor * shaped[i][0],
            "shape_memory_seconds": floor * shaped[i][1],
            "shape_floor_ratio": to_floor / sum(shaped[i]),
            "ratio_to_first": statistics.median(a.seconds / b.seconds for a, b in zip(timed[i], timed[0], strict=True)),
            "matmul_gflops": statistics.median(
                2e-9 * works[i][0] * r.samples / f for r, f in zip(timed[i], floors[i], strict=True)
            ),
            "start_seconds": runs[i].start_seconds,
            "compile_seconds": compile_seconds[i],
            "peak_memory_bytes": peak,
        }

    return [result(i) for i in range(len(runs))]


COLUMNS = {
    "workload": lambda r: r["workload"],
    "variant": lambda r: r["variant"],
    "s/round": lambda r: f"{r['seconds_per_round']:.3g}",
    "clients/s": lambda r: f"{r['clients_per_second']:.3g}",
    "samples/s": lambda r: f"{r['samples_per_second']:.0f}",
    "padding": lambda r: f"{r['padding']:.1%}",
    "to floor": lambda r: f"{r['floor_ratio']:.2f}",
    "to shape floor": lambda r: f"{r['shape_floor_ratio']:.2f}",
    "to first": lambda r: f"{r['ratio_to_first']:.2f}",
    "start s": lambda r: f"{r['start_seconds']:.1f}",
    "compile s": lambda r: f"{r['compile_seconds']:.1f}",
    "peak MB": lambda r: f"{r['peak_memory_bytes'] / 1e6:.0f}",
}


def show(results: Sequence[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS)
    for r in results:
        table.add_row(*(cell(r) for cell in COLUMNS.values()))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def measure_codecs(names: Sequence[str], rest: Sequence[str]) -> None:
    """Measures codecs in this process."""
    names = list(CODECS) if names == ["all"] else names
    if unknown := [*rest, *sorted(set(names) - set(CODECS))] or (["no codec"] if not names else []):
        sys.exit(f"bench: unknown {', '.join(unknown)}; codecs are {', '.join(CODECS)}, or all")
    results = bench_codecs.run(names, _ROUNDS.value)
    bench_codecs.show(results)
    if _JSON.value:
        Path(_JSON.value).write_text(json.dumps(results, indent=2))


def parse_flags(argv: list[str]) -> list[str]:
    """absl's parser, with `--codecs` alone for all of them."""
    return flags.FLAGS(["--codecs=all" if word in ("--codecs", "-codecs") else word for word in argv])


def main(argv: list[str]) -> None:
    """Runs every workload in its own process and collects their results."""
    logging.set_verbosity(logging.WARNING)  # no message about the search for a TPU
    if _CODECS.value is not None:
        measure_codecs(_CODECS.value, argv[1:])
        return
    if not _ROUNDS.value:
        sys.exit("bench: --rounds=0 goes with --codecs alone")
    names = list(WORKLOADS) if _WORKLOADS.value == ["all"] else _WORKLOADS.value
    unknown = argv[1:] + sorted(set(names) - set(WORKLOADS))
    unknown += [precision for precision in _PRECISION.value if precision not in PRECISIONS]
    if unknown or not _PRECISION.value:
        allowed = f"workloads are {', '.join(WORKLOADS)}, precisions {', '.join(PRECISIONS)}"
        sys.exit(f"bench: unknown {', '.join(unknown) or 'precision'}; {allowed}")
    from fedjax8.errors import UserError

    try:
        chosen = variants(_PRECISION.value, _COMPARE.value)
        if _WORKER.value:
            print(json.dumps(run_workload(names[0], chosen, _ROUNDS.value, _CHUNK.value)))
            return
        for variant in chosen:  # a mistake is reported before anything is measured
            experiment_config(WORKLOADS[names[0]], variant.precision, variant.overrides)
    except (UserError, ValueError) as error:
        sys.exit(f"bench: {error}")
    settings = [f"--precision={','.join(_PRECISION.value)}", f"--rounds={_ROUNDS.value}", f"--chunk={_CHUNK.value}"]
    settings += [f"--compare={text}" for text in _COMPARE.value]
    results = []
    for name in names:
        results += in_own_process(__file__, ["--worker", f"--workloads={name}", *settings])
    show(results)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
