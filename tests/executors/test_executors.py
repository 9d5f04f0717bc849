"""All executors give the same sums, and sums that NumPy gives too."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.executors import at_once, groups, padded
from fedjax8.executors.vmap import vmap
from fedjax8.lookup import component_names
from fedjax8.types import Partial

CASES = {
    f"{name}-{i}": (name, settings)
    for name in component_names("fedjax8.executors")
    for i, settings in enumerate(importlib.import_module(f"fedjax8.executors.{name}").EXAMPLES)
}


@pytest.fixture(params=CASES)
def executor(request):
    name, settings = CASES[request.param]
    return getattr(importlib.import_module(f"fedjax8.executors.{name}"), name)(**settings)


def affine(shared, client):
    """To sum: scale * x and a count; to find the largest of: x, -x; to keep: x + 1."""
    sums = {"x": shared * client["x"], "count": jnp.int32(1)}
    return Partial(sums, {"x": client["x"], "negated": -client["x"]}), client["x"] + 1


def run(executor, clients):
    x = np.arange(clients * 3, dtype=np.float32).reshape(clients, 3)
    mapped = executor.compile(lambda shared, c: executor.map_reduce(affine, shared, c))
    return x, mapped(jnp.float32(2.0), {"x": x})


def test_sums_and_kept_values_equal_numpy(executor):
    x, (total, kept) = run(executor, 8)
    np.testing.assert_array_equal(total.sum["x"], 2.0 * x.sum(axis=0))  # small integers: exact in any order
    assert int(total.sum["count"]) == 8
    np.testing.assert_array_equal(total.max["x"], x.max(axis=0))
    np.testing.assert_array_equal(-total.max["negated"], x.min(axis=0))
    np.testing.assert_array_equal(kept, x + 1)


def test_a_cohort_that_does_not_divide_is_refused_and_not_cut(executor):
    refused = [n for n in range(1, 9) if n % executor.num_shards or padded(n, executor.chunk) != n]
    for clients in refused[:2]:
        with pytest.raises(ValueError, match="do not divide"):
            run(executor, clients)


def test_groups_are_as_few_as_fit_and_of_one_size():
    assert [padded(n, 32) for n in (1, 10, 32, 33, 50, 53, 65)] == [1, 10, 32, 34, 50, 54, 66]
    assert [groups(n, 32) for n in (1, 32, 33, 65)] == [1, 1, 2, 3]
    assert padded(7, 1) == 7
    assert [at_once(n, 32) for n in (0, 1, 10, 33, 65)] == [1, 1, 10, 17, 22]
    assert [at_once(n, vmap().chunk) for n in (1, 10, 1003)] == [1, 10, 1003]


def test_map_reduce_can_be_called_twice_and_in_a_loop(executor):
    def program(shared, clients):
        first, _ = executor.map_reduce(affine, shared, clients)

        def again(_, carry):
            return executor.map_reduce(affine, carry.sum["x"][0] * 0.0 + shared, clients)[0]

        return jax.lax.fori_loop(0, 3, again, first), ()

    x = np.arange(8, dtype=np.float32).reshape(8, 1)
    total, _ = executor.compile(program)(jnp.float32(3.0), {"x": x})
    np.testing.assert_array_equal(total.sum["x"], 3.0 * x.sum(axis=0))


def test_total_sums_over_shards(executor):
    def program(shared, clients):
        return executor.total(jnp.sum(clients["x"])), clients["x"]

    x = np.arange(8, dtype=np.float32)
    total, kept = executor.compile(program)(jnp.float32(0.0), {"x": x})
    assert float(total) == x.sum()
    np.testing.assert_array_equal(kept, x)


def test_the_loop_runs_as_plain_python_without_jit():
    from fedjax8.executors.loop import loop

    with jax.disable_jit():
        x, (total, _) = run(loop(), 3)
    np.testing.assert_array_equal(total.sum["x"], 2.0 * x.sum(axis=0))


@pytest.mark.parametrize(
    ("name", "settings"), [("chunked", {"chunk": 0}), ("pmap", {"num_devices": 99}), ("pmap", {"chunk": 0})]
)
def test_impossible_settings_are_refused(name, settings):
    factory = getattr(importlib.import_module(f"fedjax8.executors.{name}"), name)
    with pytest.raises(ValueError, match="got"):
        factory(**settings)
