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


@pytest.mark.parametrize(
    ("values", "within"),
    [
        ([1.0, -2.0], True),
        ([0.6 * 2**48, -0.8 * 2**48 * (1 - 1e-6)], True),
        ([0.6 * 2**48, -0.8 * 2**48 * (1 + 1e-6)], False),
        ([1e19, -1e19], False),  # their squares have no float32
        ([3e38, -3e38], False),
        ([1.0, np.inf], False),
        ([np.inf, -np.inf], False),
        ([np.nan, 1.0], False),
    ],
)
def test_the_bound_of_a_message_is_on_its_norm(values, within):
    tree = {"a": jnp.float32(values[:1]), "n": jnp.int32(2**30), "b": jnp.bfloat16(1.0)}
    several = (tree, jnp.float32(values[1]), tree)  # what is in it twice counts once
    assert bool(trees.within_bounds(*several)) is within
    assert bool(jax.jit(trees.within_bounds)(*several[:2])) is within
    if within:
        want = np.linalg.norm(np.float64([*values, 1.0]))
        assert float(trees.norm(*several)) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "fits"),
    [([2.0**99, -(2.0**99)], True), ([2.0**100, -(2.0**99)], False), ([np.inf, 1], False), ([np.nan, 1], False)],
)
def test_what_may_be_added_to_a_sum_is_bounded_by_its_magnitudes(values, fits):
    assert bool(trees.summable({"x": jnp.float32(values), "n": jnp.int32(7)})) is fits
    assert bool(trees.summable({"n": jnp.int32(7)}))


@pytest.mark.parametrize(
    ("new", "old", "still"),
    [
        ([1.0, 3e38], [1.0, 2.0], True),
        ([np.inf, 1.0], [np.inf, 2.0], True),
        ([-np.inf, 1.0], [np.inf, 2.0], False),
        ([1.0, np.inf], [np.inf, 2.0], False),
        ([np.nan, 1.0], [np.nan, 1.0], False),
    ],
)
def test_a_state_is_still_finite_where_nothing_became_infinite(new, old, still):
    of = lambda values: {"x": jnp.float32(values), "n": jnp.int32(1)}
    assert bool(jax.jit(trees.still_finite)(of(new), of(old))) is still


def test_the_sums_of_a_million_clients_of_the_largest_kind_have_a_float32():
    assert np.isfinite(np.float32(trees.LARGEST_SUM) * np.float32(2**27))
    assert np.isfinite(np.float32((4 * trees.LARGEST) ** 2) * np.float32(2**27))
