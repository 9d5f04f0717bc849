"""The benchmark's workloads are the ones it says, and its floors count what a hand count gives."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.build import build
from fedjax8.errors import UserError
from fedjax8.participation import sample_cohort

SCRIPTS = pathlib.Path(__file__).parents[2] / "scripts"
STAGES = ((64, 32), (128, 16), (256, 8), (512, 4))
"""Of ResNet-18 on 32x32 images: features, and pixels on a side."""


def resnet18():
    """Multiply-adds of each convolution: two blocks a stage, the first with a 1x1 shortcut where the width changes."""
    counts, before = [32 * 32 * 27 * 64], 64
    for features, side in STAGES:
        inside = side * side * 9 * features * features
        counts += [side * side * 9 * before * features, inside]
        counts += [side * side * before * features] if before != features else []
        counts += [inside, inside]
        before = features
    return [*counts, 512 * 10]


BY_HAND = {
    "W1": [30 * 30 * 27 * 32, 28 * 28 * 288 * 64, 14 * 14 * 64 * 128, 128 * 10],
    "W2": [784 * 200, 200 * 10],
    # Into the gates, then the recurrence, of two layers, and the layer on top: all at each of 80 symbols.
    "W3": [80 * 8 * 1024, 80 * 256 * 1024, 80 * 256 * 1024, 80 * 256 * 1024, 80 * 256 * 90],
    "W4": resnet18(),
    "W5": [784 * 10],
    "W6": [28 * 28 * 25 * 6, 10 * 10 * 150 * 16, 400 * 120, 120 * 84, 84 * 10],
}
SMALL = {"synthetic": {"num_examples": 400, "num_test": 10}, "synthetic_text": {"num_clients": 4, "median": 2.0}}


def small(workload):
    """The same model and batch on few rows."""
    name, settings = workload.data
    few = SMALL[name] | ({"num_test": 10} if name == "synthetic_text" else {})
    return workload._replace(data=(name, settings | few), clients=min(workload.clients, 10), cohort=2)


@pytest.mark.parametrize("precision", ["float32", "fp8"])
@pytest.mark.parametrize("name", BY_HAND)
def test_multiply_adds_and_parameters_equal_a_hand_count(load_script, name, precision):
    workloads, floor = load_script("bench_workloads"), load_script("bench_floor")
    workload = workloads.WORKLOADS[name]
    experiment = build(workloads.experiment_config(small(workload), precision))
    row = {n: jax.ShapeDtypeStruct((1, *c.shape[1:]), c.dtype) for n, c in experiment.dataset.train.items()}
    row["mask"] = jax.ShapeDtypeStruct((1,), jnp.float32)
    variables = jax.eval_shape(experiment.simulation.model.init, jax.random.key(0), row)
    assert trees.float32_bytes(variables.params) == 4 * workload.parameters

    products = floor.products_of(experiment.simulation.model, variables, row)
    assert sorted(p.multiply_adds for p in products) == sorted(BY_HAND[name])
    # Images need no gradient; an embedding does. Clips of quantizers are not counted.
    saved = 0 if name == "W3" else BY_HAND[name][0]
    assert sum(p.training_multiply_adds for p in products) == 3 * sum(BY_HAND[name]) - saved
    # Nothing is lost when the products become matrices.
    matmuls = [size for p in products for size in p.matmuls(workload.batch)]
    work = sum(m * k * n * times for m, k, n, times in matmuls)
    assert work == workload.batch * sum(p.training_multiply_adds for p in products)


def test_recurrent_products_stay_apart_except_for_the_kernel_gradient(load_script):
    product = load_script("bench_floor").Product(1, 256, 1024, 80, True, True)
    assert product.matmuls(4) == [(4, 256, 1024, 80), (4, 1024, 256, 80), (256, 320, 1024, 1)]


def test_the_shape_floor_is_finite_and_grows_with_the_work(load_script):
    floor = load_script("bench_floor")
    one = floor.Product(4, 8, 4, 1, False, True)
    less, more = (floor.shape_floor([one] * count, 2, 1, 100, 30) for count in (1, 3))
    assert more.products == pytest.approx(3 * less.products) and less.products > 0 and less.memory > 0


@pytest.mark.parametrize(("name", "cohort"), [("W3", 8), ("W5", 80)])
def test_padding_and_samples_are_those_of_a_numpy_count(load_script, name, cohort):
    workloads = load_script("bench_workloads")
    given = workloads.WORKLOADS[name]
    text = {"num_clients": 20, "sequence_length": 5, "median": 6.0, "num_test": 5}
    data = (given.data[0], text if name == "W3" else {"shape": (2, 2, 1), "num_examples": 300, "num_test": 5})
    tiny = given._replace(data=data, clients=given.clients and 200, cohort=cohort)
    overrides = [("model.hidden", "3"), ("model.layers", "1")] if name == "W3" else []
    run = workloads.prepare(workloads.experiment_config(tiny, "float32", overrides, chunk=1))
    measured = run.one_call()
    clients, config = run.experiment.simulation.data, run.experiment.config
    sizes = clients.sizes[sample_cohort(config.seed, 0, clients.num_clients, cohort)]
    worked = -(-sizes // given.batch) * given.batch
    assert measured.samples == sizes.sum()
    assert measured.padding == pytest.approx(1 - sizes.sum() / worked.sum())

    run.one_call()  # sets how many rounds the next calls have, and makes one of them if they are several
    later = run.one_call()
    first = 2 + (later.rounds if later.rounds > 1 else 0)
    cohorts = [sample_cohort(config.seed, first + i, clients.num_clients, cohort) for i in range(later.rounds)]
    assert later.samples == pytest.approx(np.mean([clients.sizes[cohort].sum() for cohort in cohorts]))


def test_the_workloads_said_to_waste_little_do(load_script):
    for name, workload in load_script("bench_workloads").WORKLOADS.items():
        if name in ("W3", "W5"):
            rng = np.random.default_rng(0)
            sizes = rng.integers(1, 201, 100_000) if name == "W5" else np.rint(32 * np.exp(rng.normal(size=100_000)))
            worked = np.ceil(np.maximum(sizes, 1) / workload.batch) * workload.batch
            assert 1 - np.maximum(sizes, 1).sum() / worked.sum() < 0.05


def test_compared_settings_are_read_and_checked(load_script):
    workloads = load_script("bench_workloads")
    one, other, both = workloads.variants(
        ["float32", "fp8"], ['config.executor.chunk=4 --config.model.hidden="(9, 9)" config.data.num_examples=9']
    )
    assert (one.name, other.name, both.precision) == ("float32", "fp8", "float32")
    config = workloads.experiment_config(workloads.WORKLOADS["W2"], both.precision, both.overrides)
    assert config.executor.chunk == 4 and config.model.hidden == (9, 9)
    for text in ("executor.chunk=4", "config.executor.chunk", ""):
        with pytest.raises(ValueError, match="--compare"):
            workloads.variants(["float32"], [text])
    with pytest.raises(UserError, match="executr"):
        workloads.experiment_config(workloads.WORKLOADS["W2"], "float32", (("executr.chunk", "4"),))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workloads=W9"], "bench: unknown W9; workloads are W1, W2"),
        (["--compare=config.executr.chunk=4"], "did you mean 'executor'"),
    ],
)
def test_a_mistake_is_one_line_before_anything_runs(arguments, says):
    done = subprocess.run([sys.executable, SCRIPTS / "bench.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and says in done.stderr and not done.stdout


ROW = {
    "workload": "W1", "variant": "float32", "platform": "gpu", "device_kind": "NVIDIA H100 80GB HBM3", "devices": 1,
    "chunk": 25, "rounds": 5, "seconds_per_round": 0.25, "clients_per_second": 200.0, "samples_per_second": 10_000.0,
    "padding": 0.043, "floor_seconds": 0.1, "floor_ratio": 2.5, "shape_products_seconds": 0.15,
    "shape_memory_seconds": 0.02, "shape_floor_ratio": 2.5 / 1.7, "ratio_to_first": 1.0, "matmul_gflops": 247_350.0,
    "start_seconds": 2.0, "compile_seconds": 5.0, "peak_memory_bytes": 5e8,
}  # fmt: skip
RESULTS = {
    "machine": {
        "processor": "Some Processor", "cores": 2, "memory_bytes": 2**34, "system": "Linux x86_64", "load": 0.2,
        "date": "2026-01-02", "versions": {"fedjax8": "0.1", "jax": "0.10"},
    },
    "commands": ["python scripts/bench_report.py", "python scripts/bench.py"],
    "seconds": 600.0,
    "workloads": [ROW, ROW | {"variant": "fp8", "ratio_to_first": 1.5}],
    "torch": [
        {"workload": "W2", "cores": 2, "fedjax8_ms": 0.2, "torch_processes_ms": 0.4, "torch_threads_ms": 0.9,
         "ratio": 0.5, "ratio_low": 0.4, "ratio_high": 0.6},
    ],
    "scaling": {
        "cohort": [
            {"cohort": c, "chunk": 1, "seconds_per_client": 1e-3, "time_ratio": 1.0, "memory_ratio": m,
             "peak_memory_bytes": 5e8} for c, m in ((50, 1.0), (1000, 1.02))
        ],
        "clients": [
            {"clients": k, "seconds_per_round": 0.02, "ratio": r, "start_seconds": 3.0, "peak_memory_bytes": b}
            for k, r, b in ((1000, 1.0, 5e8), (10_001_000, 1.2, 7e8))
        ],
        "hosts": [
            {"workload": "W2", "precision": "fp8", "seconds_per_round": {"1x1": 0.5, "2x1": 0.25}, "ratio": 1.94}
        ],
    },
    "missing": ["Something: not there."],
}  # fmt: skip


def test_the_page_says_what_limits_what(load_script):
    text = load_script("bench_markdown").page(RESULTS)
    for line in (
        "2026-01-02, Some Processor, 2 cores, 16 GiB; 1 NVIDIA H100 80GB HBM3, Linux x86_64. fedjax8 0.1, jax 0.10.",
        "| W1 | float32 | 0.250 | 200 | 10,000 | 4.3% | 2.50 | 1.47 |  | 2.0 | 5.0 | 500 | 5 |",
        "| W1 | fp8 | 0.250 | 200 | 10,000 | 4.3% | 2.50 | 1.47 | 1.50 | 2.0 | 5.0 | 500 | 5 |",
        # Of 2.5 floors one is large products, half of one their shapes, 0.2 memory; 0.8 are left.
        "- W1: 40% of a round is multiplying at the rate of large products, 20% is lost to the shapes of the products, "
        "8% moves parameters and samples, and 32% is everything around the products, with 4.3% of the rows being "
        "padding. Most of it goes to multiplying at the rate of large products.",
        # 1500 * 0.25 s; 247.35 Tflop/s / 2.5 = 98.94, a fifth of 494.7.
        "1500 rounds of W1, projected from the median: 375 s (0:06:15). W1 computes 98,940 Gflop/s, 40% of the "
        "measured rate of large products and 20.0% of the vendor's TF32 peak.",
        "| W2 | 0.200 | 0.400 | 0.900 | 0.50 | 0.40 to 0.60 |",
        "fedjax8 is the faster one in 1 of 1: W2.",
        "Memory grows by 2% at most: updates are summed as they come.",
        "A round is not the same for all of them to within 10 % (largest difference 20%); a registered client costs 20 "
        "bytes, at the peak of start-up.",
        "| W2 in fp8 | 500 | 250 | 1.94 |",
        "- Something: not there.",
    ):
        assert line in text
    every = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in every)


def test_parts_that_were_not_measured_are_left_out(load_script):
    page = load_script("bench_markdown").page
    some = {name: RESULTS[name] for name in ("machine", "commands", "seconds", "workloads")}
    assert [line for line in page(some).splitlines() if line.startswith("#")] == ["# Benchmarks", "## Whole rounds"]


def test_pytorch_gets_the_same_steps(load_script):
    torch = load_script("bench_torch")
    assert [torch.steps_of_client(name) for name in ("W1", "W2", "W6")] == [5, 3, 30]


def test_a_round_faster_than_its_shape_floor_is_not_split(load_script):
    limits = load_script("bench_markdown").limits
    row = {"workload": "W1", "variant": "float32", "padding": 0.0, "floor_seconds": 1.0, "floor_ratio": 1.5}
    row |= {"shape_memory_seconds": 0.1, "shape_products_seconds": 1.9, "shape_floor_ratio": 0.75}
    assert limits(row).startswith("- W1: a round takes 0.75 of the time that its products take alone")
