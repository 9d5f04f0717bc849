"""What is asked of trees of numbers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees


@pytest.mark.parametrize(
    ("values", "finite"),
    [
        ([1.0, -2.0], True),
        ([3e38, 3e38], True),  # their sum is not
        ([1.0, float("inf")], False),
        ([float("inf"), float("-inf")], False),
        ([float("nan"), 1.0], False),
        ([3e38, 3e38, float("nan")], False),
    ],
)
def test_a_tree_is_finite_where_all_its_floating_numbers_are(values, finite):
    tree = {"a": jnp.ones((2, 3)), "b": jnp.array(values), "n": jnp.array([1, 2])}
    assert bool(jax.jit(trees.all_finite)(tree)) is finite
    half = tree | {"a": jnp.ones(2, jnp.bfloat16)}
    assert jax.vmap(trees.all_finite)(jax.tree.map(lambda x: jnp.stack([x, x]), half)).tolist() == [finite, finite]


def test_a_tree_without_floating_numbers_is_finite():
    assert bool(trees.all_finite({"n": jnp.array([1, 2])}))
    assert bool(trees.all_finite({}))


def test_squared_distance_is_numpys(rng):
    a, b = (jnp.asarray(rng.standard_normal((7, 300)), jnp.float32) for _ in range(2))
    expected = np.sum((np.asarray(a, np.float64) - np.asarray(b, np.float64)) ** 2)
    np.testing.assert_allclose(trees.squared_distance(a, b), expected, rtol=1e-5)
    assert trees.squared_distance(a, a) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_squared_distance_to_what_is_not_finite_is_not(bad):
    assert not np.isfinite(trees.squared_distance(jnp.asarray([1.0, bad]), jnp.asarray([1.0, 2.0])))
