"""Clients that are lost: who they are, what is counted, and what is left of a round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import dropouts
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.cohorts.loop import loop
from fedjax8.cohorts.pmap import pmap
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.lookup import component_names, find
from fedjax8.types import Dropout


def build(toys, dropout, b, rows=None, *, make=fedavg, execution=None):
    wrapped = lambda local: dropouts.with_dropout(make(local), dropout)
    return toys.build(wrapped, toys.clients([1.0] * len(b), b, rows), steps=1, execution=execution)


def only(*lost_ids):
    """Loses these clients in every round."""
    return Dropout(lambda key, ids, sizes, down, up: jnp.isin(ids, jnp.array(lost_ids)))


def test_the_lost_have_received_and_sent_nothing(toys):
    for execution in (loop(), pmap(1, 2)):
        sim = build(toys, only(1, 3), [1.0, 50.0, 2.0, np.nan, 6.0], [1, 7, 3, 1, 1], execution=execution)
        state, metrics = sim.run_round(sim.init())
        assert float(sim.variables(state).params["x"]) == pytest.approx(0.1 * (1 + 3 * 2 + 6) / 5, rel=1e-5)
        assert (metrics["dropped"], metrics["clients"], metrics["excluded"]) == (2, 3, 0)
        assert (metrics["downlink_bytes"], metrics["uplink_bytes"]) == (20, 12)


def test_a_round_in_which_everyone_is_lost_changes_nothing(toys):
    sim = build(toys, only(0, 1), [1.0, 2.0])
    state, metrics = sim.run_round(sim.init())
    assert float(sim.variables(state).params["x"]) == 0.0
    assert (metrics["clients"], metrics["dropped"], metrics["uplink_bytes"]) == (0, 2, 0)


def test_the_lost_remember_what_they_did_before(toys):
    sim = build(toys, only(1), [1.0, 2.0], make=functools.partial(scaffold, learning_rate=toys.LEARNING_RATE))
    state, _ = sim.run_round(sim.init())
    own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
    assert own[0] != 0 and own[1] == 0


def test_a_random_share_is_lost_anew_in_every_round_and_the_mean_is_unbiased(toys):
    """In 400 rounds of 8 clients, 0.25 of 3200; the mean of the movements is that of all clients."""
    lost = dropouts.random(0.25).lost
    ids, b = jnp.arange(8), np.arange(8.0)
    left = ~np.asarray(
        jax.vmap(lambda i: lost(jax.random.fold_in(jax.random.key(0), i), ids, ids, 0, 0))(jnp.arange(400))
    )
    assert left.mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.25 * 0.75 / 3200))
    assert len(np.unique(left, axis=0)) > 100
    means = (left * b).sum(axis=1) / left.sum(axis=1)
    assert means.mean() == pytest.approx(b.mean(), abs=5 * means.std() / 20)


def test_who_is_lost_depends_on_the_client_and_not_on_its_place():
    lost, key = dropouts.random(0.5).lost, jax.random.key(3)
    ids = jnp.arange(20)
    found = np.asarray(lost(key, ids, ids, 0, 0))
    np.testing.assert_array_equal(lost(key, ids[::-1], ids, 0, 0), found[::-1])


def test_a_deadline_counts_bytes_and_steps():
    """1 s down, 2 s up, 0.5 s a step; 5 s are enough for 4 steps and not for 5."""
    settings = {"spread": 0.0, "down_bandwidth": 100.0, "up_bandwidth": 25.0}
    plan = batch_plan(2, epochs=1)
    lost = dropouts.deadline(5.0, 0.5, plan=plan, **settings).lost
    sizes = jnp.int32([0, 2, 7, 8, 9, 100])
    found = np.asarray(lost(jax.random.key(0), jnp.arange(6), sizes, 100, 50))
    assert found.tolist() == [False, False, False, False, True, True]
    without_plan = dropouts.deadline(5.0, 0.5, **settings).lost
    assert (
        np.asarray(without_plan(jax.random.key(0), jnp.arange(6), sizes, 100, 50)).tolist() == [False] * 2 + [True] * 4
    )


def test_a_clients_speed_is_lognormal_and_stays():
    ids, sizes = jnp.arange(4000), jnp.ones(4000, jnp.int32)
    slower_than = lambda s, **more: np.asarray(
        dropouts.deadline(s, 1.0, spread=0.5, **more).lost(jax.random.key(1), ids, sizes, 0, 0)
    )
    error = 5 * np.sqrt(0.25 / 4000)
    assert slower_than(1.0).mean() == pytest.approx(0.5, abs=error)
    assert slower_than(np.exp(0.5)).mean() == pytest.approx(0.1587, abs=error)  # one deviation above
    again = np.asarray(dropouts.deadline(1.0, 1.0).lost(jax.random.key(2), ids, sizes, 0, 0))
    np.testing.assert_array_equal(slower_than(1.0), again)
    assert (slower_than(1.0, seed=1) != again).mean() == pytest.approx(0.5, abs=error)
    assert 0.05 < (slower_than(1.0, jitter=0.2) != again).mean() < 0.3  # those near the middle


def test_a_deadline_reads_the_bytes_of_the_real_messages(toys):
    """4 bytes each way: 8 s at 1 byte a second, and no time to train."""
    settings = {"spread": 0.0, "down_bandwidth": 1.0, "up_bandwidth": 1.0}
    sim = build(toys, dropouts.deadline(8.5, 1.0, **settings), [1.0] * 3, [1, 1, 1])
    assert sim.run_round(sim.init())[1]["dropped"] == 3


def test_an_algorithm_that_needs_everyone_is_refused(toys):
    with pytest.raises(UserError, match="needs every client in every round"):
        build(toys, dropouts.random(), [1.0, 2.0], make=functools.partial(fda, theta=1.0))


def test_every_example_is_a_dropout_and_settings_out_of_range_are_refused():
    for name in component_names("fedjax8.dropouts"):
        factory = find(name, "fedjax8.dropouts")
        assert all(isinstance(factory(**example), Dropout) for example in factory.__globals__["EXAMPLES"])
    for make in (
        functools.partial(dropouts.random, 1.0),
        functools.partial(dropouts.deadline, 0),
        functools.partial(dropouts.deadline, 1, spread=-1),
        functools.partial(dropouts.deadline, 1, up_bandwidth=0),
    ):
        with pytest.raises(ValueError, match=r"must|need"):
            make()
