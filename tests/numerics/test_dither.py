"""The counter hash: a plain NumPy copy as oracle for its bits, and statistical tests of their quality.

Statistical tests use fixed seeds and allow 5 standard errors: one value in 1.7 million would fall outside by chance,
and a few thousand values are looked at.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics import hash_bits, uniform

COUNT = 1 << 20
SIGMAS = 5.0
KEY = jax.random.key(20)


@pytest.fixture(scope="module")
def words():
    return np.asarray(hash_bits(KEY, COUNT))


def centered(words):
    """Words as numbers of mean 0 and variance 1, were they uniform."""
    return (words / 2.0**32 - 0.5) * np.sqrt(12.0)


def chi_square_sigmas(counts):
    """Distance of a chi-square statistic of equally likely cells from its mean, in standard deviations."""
    expected = counts.sum() / counts.size
    free = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free)


def test_the_words_are_those_of_the_documented_hash():
    k0, k1 = (np.uint32(k) for k in np.asarray(jax.random.bits(KEY, (2,), jnp.uint32)))
    index = np.arange(1000, dtype=np.uint32) + np.uint32(77)
    word = index + k0
    word = (word ^ (word >> np.uint32(17))) * np.uint32(0xED5AD4BB) ^ k1
    word = (word ^ (word >> np.uint32(11))) * np.uint32(0xAC4C1B51)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x31848BAB)
    word = word ^ (word >> np.uint32(14))
    np.testing.assert_array_equal(np.asarray(hash_bits(KEY, 1000, offset=77)), word)


def test_an_element_depends_on_key_and_index_alone(words):
    np.testing.assert_array_equal(np.asarray(hash_bits(KEY, (3, 5))), words[:15].reshape(3, 5))
    np.testing.assert_array_equal(np.asarray(hash_bits(KEY, 10, offset=5)), words[5:15])
    offset = jnp.uint32(123)
    np.testing.assert_array_equal(np.asarray(jax.jit(lambda o: hash_bits(KEY, 4, o))(offset)), words[123:127])
    np.testing.assert_array_equal(np.asarray(hash_bits(KEY, 4, offset=2**32 - 2))[2:], words[:2])


def test_vmap_over_keys_equals_a_loop_over_keys():
    keys = jax.random.split(KEY, 4)
    batched = np.asarray(jax.vmap(lambda k: hash_bits(k, (2, 7), offset=3))(keys))
    for key, draw in zip(keys, batched, strict=True):
        np.testing.assert_array_equal(np.asarray(hash_bits(key, (2, 7), offset=3)), draw)


def test_more_words_than_the_counter_has_are_refused():
    with pytest.raises(UserError, match=r"asks for 8589934592 random words"):
        hash_bits(KEY, (1 << 17, 1 << 16))


def test_uniform_draws_are_24_bit_fractions_below_one(words):
    draws = np.asarray(uniform(KEY, COUNT))
    assert draws.dtype == np.float32
    np.testing.assert_array_equal(draws.astype(np.float64), (words >> np.uint32(8)) / 2.0**24)
    assert draws.min() >= 0
    assert draws.max() < 1


def test_mean_and_variance_are_those_of_the_uniform_distribution(words):
    x = centered(words)
    assert abs(x.mean()) * np.sqrt(COUNT) < SIGMAS
    # The fourth moment of this distribution is 1.8, so x**2 has variance 0.8.
    assert abs((x**2).mean() - 1) * np.sqrt(COUNT / 0.8) < SIGMAS


@pytest.mark.parametrize("shift", [24, 16, 8, 0])
def test_every_byte_of_the_words_is_uniform(words, shift):
    counts = np.bincount((words >> np.uint32(shift)) & np.uint32(255), minlength=256)
    assert abs(chi_square_sigmas(counts)) < SIGMAS


def test_neighboring_words_are_uniform_in_the_square(words):
    high, low = words >> np.uint32(27), words & np.uint32(31)
    for bits in (high, low):
        counts = np.bincount(bits[:-1] * 32 + bits[1:], minlength=1024)
        assert abs(chi_square_sigmas(counts)) < SIGMAS


def test_there_is_no_serial_correlation(words):
    x = centered(words)
    for lag in [1, 2, 3, *(1 << k for k in range(2, 19))]:
        n = COUNT - lag
        assert abs(np.dot(x[:-lag], x[lag:])) / np.sqrt(n) < SIGMAS, f"lag {lag}"


def test_no_bit_predicts_a_bit_of_itself_or_of_the_next_words(words):
    bits = ((words[: 1 << 16, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)).astype(np.float32) * 2 - 1
    for lag in (0, 1, 2, 1024):
        n = len(bits) - lag
        sigmas = bits[:n].T @ bits[lag:] / np.sqrt(n)
        if lag == 0:
            np.fill_diagonal(sigmas, bits.sum(0) / np.sqrt(n))  # each bit is set half of the time
        assert np.abs(sigmas).max() < SIGMAS, f"lag {lag}"


def test_words_do_not_know_the_parity_of_their_index(words):
    x = centered(words)
    assert abs(x[::2].sum() - x[1::2].sum()) / np.sqrt(COUNT) < SIGMAS
    index_bits = (np.arange(COUNT)[:, None] >> np.arange(20)) & 1
    assert np.abs(x @ (2.0 * index_bits - 1)).max() / np.sqrt(COUNT) < SIGMAS


def test_keys_folded_with_consecutive_numbers_are_uncorrelated():
    count, number = 1 << 15, 64
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(number))
    x = centered(np.asarray(jax.vmap(lambda k: hash_bits(k, count))(keys)))
    sigmas = x @ x.T / np.sqrt(count)
    assert np.abs(sigmas[~np.eye(number, dtype=bool)]).max() < SIGMAS
    shifted = x[:, :-1] @ x[:, 1:].T / np.sqrt(count - 1)
    assert np.abs(shifted).max() < SIGMAS


def test_the_same_element_of_many_keys_is_uniform():
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(1 << 14))
    first = np.asarray(jax.vmap(lambda k: hash_bits(k, 2))(keys))
    for column in first.T:
        assert abs(chi_square_sigmas(np.bincount(column >> np.uint32(26), minlength=64))) < SIGMAS
        assert abs(chi_square_sigmas(np.bincount(column & np.uint32(63), minlength=64))) < SIGMAS
