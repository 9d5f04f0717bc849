"""Norms and clipping by them, against float64, for trees of any magnitudes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.privacy import norms

SHAPES = ((3,), (40, 25), (1,), (2, 3, 500))
SHORT = 1e-5
"""What a clipped tree may lack of C: see the module."""


def exact(tree):
    """The norm in float64, whose range holds every square of a float32."""
    return np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(tree)))


@jax.jit
def clipped(tree, bound):
    norm = norms.norm_of(tree)
    return norms.clip(tree, bound), norms.exceeds(norm, bound), norm.number()


def trees_of(rng, count):
    """Trees whose leaves, and values within them, have magnitudes from 1e-37 to 1e38."""
    for _ in range(count):
        spread, centers = rng.choice([0.0, 1.0, 15.0]), rng.uniform(-37, 38, len(SHAPES))
        if rng.random() < 0.5:
            centers[:] = centers[0]
        leaves = []
        for shape, center in zip(SHAPES, centers, strict=True):
            exponents = np.clip(center + spread * rng.normal(size=shape), -37, 38)
            leaves.append(np.float32(rng.choice([-1, 1], shape) * 10**exponents * rng.uniform(0.1, 1, shape)))
        yield leaves


def test_what_is_clipped_is_never_longer_than_the_bound_and_keeps_its_direction(rng):
    for tree in trees_of(rng, 300):
        length = exact(tree)
        for bound in np.float32([1.0, 10 ** rng.uniform(-29, 29), length if 1e-29 < length < 1e29 else 0.5]):
            found, long, number = clipped(tree, bound)
            assert exact(found) <= bound, (length, bound)
            if length < np.finfo(np.float32).max:
                assert length * (1 - 1e-7) <= number <= length * (1 + SHORT) + 1e-37
            if length <= bound * (1 - SHORT):
                assert not long
                for a, b in zip(
                    found, tree, strict=True
                ):  # but for subnormal numbers, which a processor may count as 0
                    np.testing.assert_allclose(a, b, rtol=0, atol=np.finfo(np.float32).tiny)
            if length > bound:
                assert long and exact(found) >= bound * (1 - 2 * SHORT)
                wanted = [np.float64(x) * (bound / length) for x in tree]
                error = exact([np.float64(a) - b for a, b in zip(found, wanted, strict=True)])
                assert error <= 2 * SHORT * bound


def test_many_values_do_not_shorten_a_sum():
    """Where every value rounds the running sum down by as much as it can, up to 3 million of them."""
    for n in (15, 16, 17, 273, 4097, 3_000_001):
        x = np.full(n, np.float32(1 + 2**-12 + 2**-23))
        found, _, number = clipped([x], np.float32(0.5))
        assert exact([x]) <= number <= exact([x]) * (1 + SHORT)
        assert 0.5 * (1 - 2 * SHORT) <= exact(found) <= 0.5


def test_the_largest_float32_is_clipped_to_its_direction_and_nothing_to_nothing():
    largest = np.finfo(np.float32).max
    found, long, number = clipped([np.full(100, largest), np.float32([-largest])], np.float32(2.0))
    assert long and np.isinf(number)  # the norm, ten times the largest float32, is none
    np.testing.assert_allclose(found[0], 2 / np.sqrt(101), rtol=SHORT)
    np.testing.assert_allclose(found[1], -2 / np.sqrt(101), rtol=SHORT)
    found, long, number = clipped([np.zeros(7, np.float32)], np.float32(1e-30))
    assert not long and number == 0 and exact(found) == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_tree_that_is_not_finite_becomes_zeros(bad):
    for bound in (1.0, np.inf):
        found, long, number = clipped([np.float32([1, bad]), np.float32([3e38])], np.float32(bound))
        assert long and np.isinf(number) and exact(found) == 0


def test_an_infinite_bound_clips_nothing():
    tree = [np.float32([3e38, -3e38]), np.float32([1e-30])]
    jax.tree.map(np.testing.assert_array_equal, clipped(tree, np.float32(np.inf))[0], tree)


def test_the_norm_of_an_outer_product_is_that_of_the_product(rng):
    of_product = jax.jit(lambda x, y: norms.product(norms.norm_of(x), norms.norm_of(y)))
    for _ in range(50):
        x, y = (np.float32(rng.normal(size=n) * 10 ** rng.uniform(-37, 37)) for n in (30, 7))
        norm = of_product(x, y)
        length = np.float64(norm.value) * 2.0 ** int(norm.exponent)
        assert exact(x) * exact(y) <= length <= exact(x) * exact(y) * (1 + 2 * SHORT)


def test_bounds_out_of_range_are_refused():
    norms.check_bound(jnp.inf, noised=False)
    for bound, noised in ((0.0, False), (-1.0, False), (1e-31, False), (np.nan, False), (np.inf, True)):
        with pytest.raises(ValueError, match="clip must be from 1e-30 to 1e"):
            norms.check_bound(bound, noised)
