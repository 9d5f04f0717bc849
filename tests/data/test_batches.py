"""Batches cut on the device, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.data.batches import ClientRows, Pool, batch_plan, num_steps, shuffled_epochs, take_batch

SIZES = np.array([7, 1, 4, 12, 0])
BATCH = 4


@pytest.fixture
def pool():
    order = np.random.default_rng(0).permutation(SIZES.sum()).astype(np.int32)
    return Pool({"x": jnp.arange(100, 100 + SIZES.sum())}, jnp.asarray(order))


def all_batches(pool, client, plan, key):
    start = int(SIZES[:client].sum())
    rows = ClientRows(pool, jnp.int32(start), jnp.int32(SIZES[client]))
    orders = shuffled_epochs(plan, rows.size, key)
    steps = int(num_steps(plan, rows.size))
    batches = [jax.device_get(take_batch(plan, rows, orders, jnp.int32(s))) for s in range(steps)]
    return batches, 100 + np.asarray(pool.order)[start : start + SIZES[client]]


@pytest.mark.parametrize("client", [0, 1, 2, 3])
def test_every_epoch_shows_each_of_the_clients_rows_once(pool, client):
    plan = batch_plan(SIZES, BATCH, epochs=3)
    batches, own = all_batches(pool, client, plan, jax.random.key(client))
    per_epoch = -(-SIZES[client] // BATCH)
    assert len(batches) == 3 * per_epoch
    for epoch in range(3):
        part = batches[epoch * per_epoch : (epoch + 1) * per_epoch]
        seen = np.concatenate([b["x"][b["mask"] == 1] for b in part])
        np.testing.assert_array_equal(np.sort(seen), np.sort(own))


def test_epochs_and_keys_are_shuffled_differently(pool):
    plan = batch_plan(SIZES, BATCH, epochs=2)
    batches, _ = all_batches(pool, 3, plan, jax.random.key(0))
    others, _ = all_batches(pool, 3, plan, jax.random.key(1))
    first, second, other = (np.concatenate([b["x"] for b in p]) for p in (batches[:3], batches[3:], others[:3]))
    assert np.any(first != second)
    assert np.any(first != other)


def test_positions_are_uniform_over_shuffles():
    plan = batch_plan(np.array([5]), 5, epochs=4000)
    orders = np.asarray(shuffled_epochs(plan, jnp.int32(5), jax.random.key(0)))
    counts = np.stack([np.bincount(orders[:, place], minlength=5) for place in range(5)])
    # 4000 draws, p = 1/5: standard deviation 25.3; 25 cells within 4.5 of them
    assert np.all(np.abs(counts - 800) < 4.5 * 25.3)


def test_an_empty_client_takes_no_step(pool):
    for length in ({"epochs": 2}, {"steps": 5}):
        plan = batch_plan(SIZES, BATCH, **length)
        assert int(num_steps(plan, SIZES[4])) == 0


def test_fixed_steps_begin_new_epochs_as_often_as_needed(pool):
    plan = batch_plan(SIZES, BATCH, steps=6)
    assert [int(num_steps(plan, s)) for s in SIZES] == [6, 6, 6, 6, 0]
    batches, own = all_batches(pool, 1, plan, jax.random.key(0))
    assert [b["x"][b["mask"] == 1].tolist() for b in batches] == [own.tolist()] * 6


def test_padding_repeats_no_foreign_row(pool):
    plan = batch_plan(SIZES, BATCH, epochs=1)
    batches, own = all_batches(pool, 1, plan, jax.random.key(0))
    assert set(batches[0]["x"]) == set(own)


@pytest.mark.parametrize(
    "settings",
    [{"batch_size": 0, "epochs": 1}, {"batch_size": 2}, {"batch_size": 2, "epochs": 0},
     {"batch_size": 2, "epochs": 1, "steps": 1}],
)  # fmt: skip
def test_impossible_plans_are_refused(settings):
    with pytest.raises(ValueError, match="got"):
        batch_plan(SIZES, **settings)
