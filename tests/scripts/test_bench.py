"""The benchmark's workloads are the ones it says, and its floor counts what a hand count gives."""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import pytest

from fedjax8 import trees
from fedjax8.build import build

PATH = pathlib.Path(__file__).parents[2] / "scripts" / "bench.py"


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("fedjax8_bench", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


BY_HAND = {
    "W1": [30 * 30 * 27 * 32, 28 * 28 * 288 * 64, 14 * 14 * 64 * 128, 128 * 10],
    "W2": [784 * 200, 200 * 10],
    "W6": [28 * 28 * 25 * 6, 10 * 10 * 150 * 16, 400 * 120, 120 * 84, 84 * 10],
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("precision", ["float32", "fp8"])
def test_multiply_adds_and_parameters_equal_a_hand_count(bench, name, precision):
    workload = {**bench.WORKLOADS[name], "clients": 10, "cohort": 2, "examples": 4}
    model = build(bench.experiment_config(workload, precision, 0)).model
    batch = {"x": jax.ShapeDtypeStruct((1, *workload["shape"]), jnp.uint8)}
    batch |= {"y": jax.ShapeDtypeStruct((1,), jnp.int32), "mask": jax.ShapeDtypeStruct((1,), jnp.float32)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    assert bench.layer_multiply_adds(model, variables, batch) == BY_HAND[name]
    assert trees.float32_bytes(variables.params) == 4 * workload["parameters"]
