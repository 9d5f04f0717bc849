"""Batches cut on the device, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.data.batches import batch_plan, num_steps, shuffled, take_batch
from fedjax8.types import ClientRows, Pool

SIZES = np.array([7, 1, 4, 12, 0])
BATCH = 4


@pytest.fixture
def pool():
    order = np.random.default_rng(0).permutation(SIZES.sum()).astype(np.int32)
    return Pool({"x": jnp.arange(100, 100 + SIZES.sum())}, jnp.asarray(order))


def all_batches(pool, client, plan, key):
    start = int(SIZES[:client].sum())
    rows = ClientRows(pool, jnp.int32(start), jnp.int32(SIZES[client]))
    steps = int(num_steps(plan, rows.size))
    batches = [jax.device_get(take_batch(plan, rows, key, jnp.int32(s))) for s in range(steps)]
    return batches, 100 + np.asarray(pool.order)[start : start + SIZES[client]]


@pytest.mark.parametrize("client", [0, 1, 2, 3])
def test_every_epoch_shows_each_of_the_clients_rows_once(pool, client):
    plan = batch_plan(BATCH, epochs=3)
    batches, own = all_batches(pool, client, plan, jax.random.key(client))
    per_epoch = -(-SIZES[client] // BATCH)
    assert len(batches) == 3 * per_epoch
    for epoch in range(3):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        seen = np.concatenate([b["x"][b["mask"] == 1] for b in part])
        np.testing.assert_array_equal(np.sort(seen), np.sort(own))


def test_epochs_and_keys_are_shuffled_differently(pool):
    plan = batch_plan(BATCH, epochs=2)
    batches, _ = all_batches(pool, 3, plan, jax.random.key(0))
    others, _ = all_batches(pool, 3, plan, jax.random.key(1))
    first, second, other = (np.concatenate([b["x"] for b in p]) for p in (batches[:3], batches[3:], others[:3]))
    assert np.any(first != second)
    assert np.any(first != other)


@pytest.mark.parametrize("size", [1, 2, 5, 7, 64, 1000])
def test_a_shuffle_is_a_permutation_for_every_size(size):
    keys = jax.random.split(jax.random.key(size), 20)
    orders = np.asarray(jax.vmap(lambda k: shuffled(k, jnp.arange(size), jnp.int32(size)))(keys))
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(size), (20, 1)))


def test_all_orders_of_four_rows_are_equally_likely():
    draws = 24_000
    keys = jax.random.split(jax.random.key(0), draws)
    orders = np.asarray(jax.vmap(lambda k: shuffled(k, jnp.arange(4), jnp.int32(4)))(keys))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    # chi-square with 23 degrees of freedom: mean 23, standard deviation 6.8; allow 5 of them
    assert np.sum((counts - draws / 24) ** 2) / (draws / 24) < 23 + 5 * 6.8


def test_neighbors_do_not_stay_together():
    size, draws = 50, 4000
    keys = jax.random.split(jax.random.key(1), draws)
    pair = np.asarray(jax.vmap(lambda k: shuffled(k, jnp.arange(2), jnp.int32(size)))(keys))
    adjacent = np.mean(np.abs(pair[:, 0] - pair[:, 1]) == 1)
    # 2 (n - 1) / (n (n - 1)) = 0.04 in a uniform order; standard error 0.0031, allow 4.5
    assert abs(adjacent - 2 / size) < 4.5 * 0.0031


def test_an_empty_client_takes_no_step(pool):
    for length in ({"epochs": 2}, {"steps": 5}):
        plan = batch_plan(BATCH, **length)
        assert int(num_steps(plan, SIZES[4])) == 0


def test_fixed_steps_begin_new_epochs_as_often_as_needed(pool):
    plan = batch_plan(BATCH, steps=6)
    assert [int(num_steps(plan, s)) for s in SIZES] == [6, 6, 6, 6, 0]
    batches, own = all_batches(pool, 1, plan, jax.random.key(0))
    assert [b["x"][b["mask"] == 1].tolist() for b in batches] == [own.tolist()] * 6


def test_a_batch_that_is_not_full_repeats_its_own_rows(pool):
    plan = batch_plan(BATCH, epochs=1)
    batches, _ = all_batches(pool, 0, plan, jax.random.key(0))
    last = batches[-1]
    np.testing.assert_array_equal(last["mask"], [1, 1, 1, 0])
    assert set(last["x"]) == set(last["x"][:3])
    assert len(set(last["x"])) == 3


def test_without_a_key_rows_come_in_their_own_order(pool):
    plan = batch_plan(BATCH, epochs=1)
    rows = ClientRows(pool, jnp.int32(0), jnp.int32(SIZES[0]))
    first = take_batch(plan, rows, None, jnp.int32(0))
    np.testing.assert_array_equal(first["x"], 100 + np.asarray(pool.order)[:BATCH])


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0, "epochs": 1}, {"batch_size": 2}, {"batch_size": 2, "epochs": 0},
     {"batch_size": 2, "epochs": 1, "steps": 1}],
)  # fmt: skip
def test_impossible_plans_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        batch_plan(**settings)
