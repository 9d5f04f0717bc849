"""Hadamard transform and random rotations, against the matrix built here by bit counting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics.hadamard import hadamard, padded_size, random_signs, rotate, unrotate

KEY = jax.random.key(0)


def matrix(d):
    """Entry (i, j) is -1 to the number of bits that i and j share: Sylvester's matrix, not built by doubling."""
    shared = np.arange(d)[:, None] & np.arange(d)[None, :]
    return (-1.0) ** np.vectorize(int.bit_count)(shared.astype(object)).astype(int) / np.sqrt(d)


@pytest.mark.parametrize("d", [1, 2, 8, 64, 128, 512])  # one factor, one full factor, two uneven ones
def test_the_transform_is_the_product_with_sylvesters_matrix(d):
    x = np.random.default_rng(d).standard_normal(d).astype(np.float32)
    got = np.asarray(hadamard(jnp.asarray(x)))
    assert got.dtype == np.float32
    # 9 sums of float32 numbers at most, each off by 2**-24 of a norm
    np.testing.assert_allclose(got, matrix(d) @ x.astype(np.float64), rtol=0, atol=2.0**-20 * np.linalg.norm(x))


def test_a_long_vector_keeps_its_norm_and_comes_back():
    x = np.random.default_rng(1).standard_normal(1 << 15).astype(np.float32)
    z = hadamard(jnp.asarray(x))
    assert float(jnp.linalg.norm(z)) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    np.testing.assert_allclose(np.asarray(hadamard(z)), x, rtol=0, atol=2.0**-19)
    spike = hadamard(jnp.zeros(1 << 15).at[0].set(1.0))
    np.testing.assert_allclose(np.asarray(spike), 2.0**-7.5, rtol=2.0**-20)


def test_large_and_small_values_neither_overflow_nor_vanish():
    for size in (1e37, 1e-37):
        z = np.asarray(hadamard(jnp.full(256, size, jnp.float32).at[1::2].multiply(-1)))
        want = np.zeros(256)
        want[1] = 16 * size  # the row of alternating signs; without scaling on the way the sum is 2.56e39
        np.testing.assert_allclose(z, want, rtol=1e-6)


def test_only_vectors_of_a_power_of_two_are_taken():
    for shape in ((6,), (0,), (2, 4)):
        with pytest.raises(UserError, match=rf"power of two; got shape \({shape[0]}"):
            hadamard(jnp.zeros(shape))


def test_sizes_are_padded_to_the_next_power_of_two():
    assert [padded_size(n) for n in (0, 1, 2, 3, 64, 65)] == [1, 1, 2, 4, 64, 128]


def test_signs_are_fair_and_differ_between_keys():
    signs = np.asarray(random_signs(KEY, 10_001))
    assert signs.shape == (10_001,)
    assert set(signs.tolist()) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / np.sqrt(10_001)  # 4 standard errors
    other = np.asarray(random_signs(jax.random.key(1), 10_001))
    assert abs((signs * other).mean()) < 4 / np.sqrt(10_001)


@pytest.mark.parametrize("shape", [(3, 5), (1,), (4, 4)])
def test_rotating_back_a_rotation_is_the_identity(shape):
    x = np.random.default_rng(2).standard_normal(shape).astype(np.float32)
    z = rotate(KEY, jnp.asarray(x))
    assert z.shape == (padded_size(x.size),)
    assert float(jnp.linalg.norm(z)) == pytest.approx(np.linalg.norm(x), rel=1e-6)
    np.testing.assert_allclose(np.asarray(unrotate(KEY, z, shape)), x, rtol=0, atol=2.0**-20 * np.linalg.norm(x))


def test_a_rotation_spreads_a_vector_that_has_one_value():
    z = np.asarray(rotate(KEY, jnp.zeros((8, 8)).at[3, 2].set(8.0)))
    np.testing.assert_allclose(np.abs(z), 1.0, rtol=1e-6)


def test_clients_of_a_batch_are_rotated_each_by_its_own_key():
    keys = jax.random.split(KEY, 3)
    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 40)), jnp.float32)
    together = np.asarray(jax.vmap(rotate)(keys, x))
    for i in range(3):
        np.testing.assert_allclose(together[i], np.asarray(rotate(keys[i], x[i])), rtol=0, atol=1e-5)
    assert np.abs(np.asarray(rotate(keys[0], x[0]) - rotate(keys[1], x[0]))).max() > 0.1
