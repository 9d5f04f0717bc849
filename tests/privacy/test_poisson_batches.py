"""Poisson samples of a client's rows, against the binomial distribution of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax8.data.batches import OVERFLOW, batch_plan, binomial_reached, poisson_count, poisson_lanes, take_batch
from fedjax8.types import ClientRows, Pool

PLAN = batch_plan(4, steps=1)._replace(sampling="poisson")


@pytest.mark.parametrize("batch_size", [1, 4, 32, 512])
def test_more_rows_than_lanes_are_as_unlikely_as_stated(batch_size):
    lanes = poisson_lanes(batch_size)
    for size in (lanes + 1, 10 * lanes, 10**7):
        assert stats.binom.sf(lanes, size, batch_size / size) <= OVERFLOW
    assert lanes < 3 * batch_size + 20


@pytest.mark.parametrize("batch_size", [1, 32, 512])
def test_the_number_of_rows_is_binomial(batch_size):
    for size in (batch_size + 1, 3 * batch_size, 100 * batch_size, 10**6):
        reached = np.asarray(binomial_reached(batch_size, jnp.int32(size)), float)
        wanted = stats.binom.cdf(np.arange(len(reached)), size, batch_size / size)
        np.testing.assert_allclose(reached, wanted, rtol=0, atol=5e-7)


def test_no_more_rows_than_a_batch_are_all_taken():
    counts = jax.jit(jax.vmap(lambda size: poisson_count(jax.random.key(0), 4, size)))(jnp.array([0, 1, 4]))
    assert counts.tolist() == [0, 1, 4]


def test_every_row_is_in_a_sample_by_itself_with_the_rate():
    size, draws, rate = 10, 20_000, 0.4
    rows = ClientRows(Pool({"x": jnp.arange(100, 112)}, None), jnp.int32(2), jnp.int32(size))

    def members(key):
        batch = take_batch(PLAN, rows, key, jnp.int32(3))
        return jnp.zeros(size).at[batch["x"] - 102].add(batch["mask"])

    seen = np.asarray(jax.jit(jax.vmap(members))(jax.random.split(jax.random.key(0), draws)))
    assert set(np.unique(seen)) == {0.0, 1.0}  # nobody twice
    error = np.sqrt(rate * (1 - rate) / draws)
    np.testing.assert_allclose(seen.mean(axis=0), rate, atol=5 * error)
    together = seen.T @ seen / draws  # of independent rows rate^2, standard error 0.0026
    pairs = together[np.triu_indices(size, 1)]
    np.testing.assert_allclose(pairs, rate**2, atol=5 * np.sqrt(rate**2 * (1 - rate**2) / draws))


def test_examples_come_first_and_steps_differ():
    rows = ClientRows(Pool({"x": jnp.arange(50)}, None), jnp.int32(0), jnp.int32(50))
    take = jax.jit(jax.vmap(lambda step: take_batch(PLAN, rows, jax.random.key(1), step)))
    batches = jax.device_get(take(jnp.arange(8)))
    assert np.all(np.diff(batches["mask"], axis=1) <= 0)
    sets = {tuple(np.sort(x[mask == 1])) for x, mask in zip(batches["x"], batches["mask"], strict=True)}
    assert len(sets) > 4
