"""What is asked of trees of numbers."""

import jax
import jax.numpy as jnp
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
