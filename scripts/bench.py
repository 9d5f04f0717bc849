#!/usr/bin/env python3
"""Times whole rounds against the floor that this machine's own matrix multiplication sets.

    python scripts/bench.py --workloads=W1,W2 --json=bench.json

W1: 1000 clients of 50 images 32x32x3, 50 a round, 5 steps of batch 10, CNN with 1,626,442 parameters.
W2: 1000 clients of 60 images 28x28, 100 a round, 3 steps of batch 20, MLP 784-200-10.
W6: 100 clients of 600 images 28x28, 10 a round, 30 steps of batch 20, LeNet-5 with 61,706 parameters.

The floor of a round is the multiply-adds of its dense and convolution layers (forward and both gradients, without the
input gradient of the first layer) over the rate of large float32 matrix products on the whole machine. That rate is
measured in the same process right before and after each round, so that a machine whose speed drifts does not spoil the
ratio. Each workload runs in a process of its own, so that its peak memory is its own; several precisions, as in
`--precision=float32,fp8`, take turns round by round in one process, each is compared with the first pair by pair, and
the peak is that of all together.
"""

import functools
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags

_WORKLOADS = flags.DEFINE_list("workloads", ["W1", "W2"], "What to run: W1, W2, W6.")
_PRECISION = flags.DEFINE_list(
    "precision", ["float32"], "float32, fp8 (QAT and FP8 messages both ways), or both in turn."
)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds; the median is reported.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", 0, "Clients vmapped at once; 0 for the machine's default.")
_JSON = flags.DEFINE_string("json", None, "Write the results there.")
_WORKER = flags.DEFINE_bool("worker", False, "Internal: run one workload in this process.")

WORKLOADS: dict[str, dict[str, Any]] = {
    "W1": {
        "shape": (32, 32, 3),
        "model": "simple_cnn",
        "clients": 1000,
        "examples": 50,
        "cohort": 50,
        "batch": 10,
        "parameters": 1_626_442,
    },
    "W2": {
        "shape": (28, 28, 1),
        "model": "mlp",
        "clients": 1000,
        "examples": 60,
        "cohort": 100,
        "batch": 20,
        "parameters": 159_010,
    },
    "W6": {
        "shape": (28, 28, 1),
        "model": "lenet5",
        "clients": 100,
        "examples": 600,
        "cohort": 10,
        "batch": 20,
        "parameters": 61_706,
    },
}
PRECISIONS = ("float32", "fp8")
LEARNING_RATE = 0.1
MATMUL_SIZE = 1024
CLOCK_SECONDS = 0.25
COMPILE_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
}


def experiment_config(workload: dict[str, Any], precision: str, chunk: int) -> Any:
    """The workload as a fedjax8 config."""
    from fedjax8.config import base_config, component

    config = base_config()
    config.data = component(
        "synthetic", shape=workload["shape"], num_examples=workload["clients"] * workload["examples"], num_test=100
    )
    config.partition = component("iid")
    config.num_clients, config.cohort_size = workload["clients"], workload["cohort"]
    config.model = component(workload["model"], **({"hidden": (200,)} if workload["model"] == "mlp" else {}))
    config.client.batch_size, config.client.epochs = workload["batch"], 1
    config.client.optimizer = component("sgd", learning_rate=LEARNING_RATE)
    if precision == "float32":
        config.adapter = component("none")
        config.uplink, config.downlink = component("none"), component("none")
    if chunk:
        config.executor = component("auto", chunk=chunk)
    return config


def layer_multiply_adds(model: Any, variables: Any, batch: dict[str, Any]) -> list[int]:
    """Multiply-adds of each matrix product and convolution of the forward pass, in order."""
    import jax

    counts: list[int] = []

    def walk(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                (contract, _), _ = equation.params["dimension_numbers"]
                inner = math.prod(equation.invars[0].aval.shape[axis] for axis in contract)
                counts.append(math.prod(equation.outvars[0].aval.shape) * inner)
            elif equation.primitive.name == "conv_general_dilated":
                kernel = equation.invars[1].aval.shape
                out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
                counts.append(math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // out_features)
            for value in equation.params.values():
                inner_jaxpr = getattr(value, "jaxpr", value)
                if hasattr(inner_jaxpr, "eqns"):
                    walk(inner_jaxpr)

    walk(jax.make_jaxpr(lambda v, b: model.apply(v, b)[0])(variables, batch).jaxpr)
    return counts


def matmul_clock() -> Callable[[], float]:
    """A function that measures float32 multiply-adds per second of the whole machine, in about a quarter of a second.

    It multiplies large matrices on all devices at once; on CPU, within a few percent of what NumPy's library reaches.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    devices = jax.local_device_count()
    size = MATMUL_SIZE if jax.default_backend() == "cpu" else 8 * MATMUL_SIZE
    a = np.random.default_rng(0).standard_normal((devices, size, size)).astype(np.float32) / math.sqrt(size)

    @functools.partial(jax.pmap, in_axes=(0, None))
    def chain(a, products):
        return jax.lax.fori_loop(0, products, lambda _, x: jnp.dot(x, a), a)

    a = jax.block_until_ready(jax.pmap(lambda x: x)(a))
    jax.block_until_ready(chain(a, 1))
    begun = time.perf_counter()
    jax.block_until_ready(chain(a, 4))
    products = max(4, round(4 * CLOCK_SECONDS / (time.perf_counter() - begun)))

    def rate() -> float:
        begun = time.perf_counter()
        jax.block_until_ready(chain(a, products))
        return devices * products * size**3 / (time.perf_counter() - begun)

    return rate


def peak_memory_bytes() -> int:
    """Peak of the accelerator where it is reported, else of this process."""
    import jax

    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("peak_bytes_in_use", 0)) or 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def prepare(workload: dict[str, Any], precision: str, chunk: int) -> tuple[Callable[[], float], int]:
    """(a function that runs one more round and returns its seconds, the round's multiply-adds)."""
    import jax

    from fedjax8.build import build

    experiment = build(experiment_config(workload, precision, chunk))
    simulation = experiment.simulation
    state = simulation.init()
    variables = simulation.variables(state)
    batch = {
        n: jax.ShapeDtypeStruct((workload["batch"], *c.shape[1:]), c.dtype) for n, c in experiment.dataset.train.items()
    }
    batch["mask"] = jax.ShapeDtypeStruct((workload["batch"],), "float32")
    layers = layer_multiply_adds(experiment.model, variables, batch)
    steps = math.ceil(workload["examples"] / workload["batch"]) * workload["cohort"]

    def one_round() -> float:
        nonlocal state
        begun = time.perf_counter()
        state, _ = simulation.run_round(state)
        jax.block_until_ready(state.server)
        return time.perf_counter() - begun

    return one_round, steps * (3 * sum(layers) - layers[0])


def run_workload(name: str, precisions: list[str], rounds: int, chunk: int) -> list[dict[str, Any]]:
    """Measures one workload in this process, in each precision, round by round in turn."""
    from fedjax8.train import set_up_devices

    set_up_devices(None)
    import jax

    compiling: list[float] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiling.append(seconds) if event in COMPILE_EVENTS else None
    )
    workload = WORKLOADS[name]
    runs, works, compile_seconds = [], [], []
    for precision in precisions:
        one_round, multiply_adds = prepare(workload, precision, chunk)
        compiling.clear()
        one_round()
        compile_seconds.append(sum(compiling))
        one_round()
        runs.append(one_round)
        works.append(multiply_adds)
    clock = matmul_clock()
    times, floors, before = [[] for _ in runs], [[] for _ in runs], clock()
    for _ in range(rounds):
        for i, one_round in enumerate(runs):
            times[i].append(one_round())
            after = clock()
            floors[i].append(2 * works[i] / (before + after))
            before = after
    peak = peak_memory_bytes()

    def result(i: int) -> dict[str, Any]:
        seconds, floor = statistics.median(times[i]), statistics.median(floors[i])
        return {
            "workload": name,
            "precision": precisions[i],
            "platform": jax.default_backend(),
            "devices": jax.local_device_count(),
            "seconds_per_round": seconds,
            "floor_seconds": floor,
            "floor_ratio": statistics.median(t / f for t, f in zip(times[i], floors[i], strict=True)),
            "ratio_to_first": statistics.median(t / f for t, f in zip(times[i], times[0], strict=True)),
            "clients_per_second": workload["cohort"] / seconds,
            "samples_per_second": workload["cohort"] * workload["examples"] / seconds,
            "matmul_gflops": 2e-9 * works[i] / floor,
            "compile_seconds": compile_seconds[i],
            "peak_memory_bytes": peak,
        }

    return [result(i) for i in range(len(runs))]


def show(results: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "workload", "precision", "s/round", "floor s", "to floor", "to first", "clients/s", "compile s", "peak MB"
    )
    for r in results:
        table.add_row(
            r["workload"],
            r["precision"],
            f"{r['seconds_per_round']:.3f}",
            f"{r['floor_seconds']:.3f}",
            f"{r['floor_ratio']:.2f}",
            f"{r['ratio_to_first']:.2f}",
            f"{r['clients_per_second']:.0f}",
            f"{r['compile_seconds']:.1f}",
            f"{r['peak_memory_bytes'] / 1e6:.0f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def main(argv: list[str]) -> None:
    """Runs every workload in its own process and collects what they print."""
    unknown = sorted(set(_WORKLOADS.value) - set(WORKLOADS))
    unknown += [precision for precision in _PRECISION.value if precision not in PRECISIONS]
    if argv[1:] or unknown or not _PRECISION.value:
        allowed = f"workloads are {', '.join(WORKLOADS)}, precisions {', '.join(PRECISIONS)}"
        sys.exit(f"bench: unknown {', '.join(argv[1:] + unknown) or 'precision'}; {allowed}")
    if _WORKER.value:
        print(json.dumps(run_workload(_WORKLOADS.value[0], _PRECISION.value, _ROUNDS.value, _CHUNK.value)))
        return
    results = []
    for name in _WORKLOADS.value:
        settings = [f"--precision={','.join(_PRECISION.value)}", f"--rounds={_ROUNDS.value}", f"--chunk={_CHUNK.value}"]
        command = [sys.executable, os.path.abspath(__file__), "--worker", f"--workloads={name}", *settings]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"bench: {name} failed; its message is above")
        results += json.loads(done.stdout.splitlines()[-1])
    show(results)
    if _JSON.value:
        with open(_JSON.value, "w") as file:
            json.dump(results, file, indent=2)


if __name__ == "__main__":
    app.run(main)
