"""Runs side by side are the runs that each would be alone, bit for bit."""

import jax
import numpy as np
import optax
import pytest

from fedjax8.algorithms.scaffold import scaffold
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.chunked import chunked
from fedjax8.executors.pmap import pmap
from fedjax8.local import local_training
from fedjax8.systems import ServerLink, same


@pytest.fixture
def make(toys):
    model = toys.quadratic()
    plan = batch_plan(1, epochs=2)
    algorithm = scaffold(local_training(model, optax.sgd(0.1), plan), learning_rate=0.1)

    columns = toys.clients([1.0, 4.0, 2.0, 3.0], [0.0, 1.0, -1.0, 2.0], [3, 3, 2, 5]).columns

    def make(seed, beside=None, system=None):
        # Another split for every seed, which leaves out as many rows as the seed says.
        owners = np.where(np.arange(13) < seed, -1, np.random.default_rng(seed).permutation(np.arange(13) % 4))
        data = FederatedData.from_owners(columns, owners, 4)
        return simulate(
            algorithm,
            data,
            cohort_size=2,
            uplink=none(),
            downlink=none(),
            seed=seed,
            executor=chunked(),
            beside=beside,
            system=system,
        )

    return make


def leaves(state):
    return [np.asarray(x) for x in jax.tree.leaves((state.server, state.clients.arrays()))]


def test_each_run_is_what_it_is_alone_also_when_one_waits(make):
    first = make(0)
    runs = [first, make(1, first), make(2, first)]
    run_rounds = side_by_side(runs, pmap(1, 2))  # three runs on two devices: one place stays empty
    states, told = [run.init() for run in runs], [[], [], []]
    for counts in ((2, 2, 2), (2, 0, 2), (0, 2, 0)):
        states, lines = run_rounds(states, counts, thens=counts)
        assert [len(of_run) for of_run in lines] == list(counts)
        told = [before + new for before, new in zip(told, lines, strict=True)]
    for seed, (state, lines) in enumerate(zip(states, told, strict=True)):
        alone = make(seed)
        want, wanted = alone.init(), []
        for _ in range(2):
            want, new = alone.run_rounds(want, 2)
            wanted += new
        assert lines == wanted
        for a, b in zip(leaves(state), leaves(want), strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_rows_are_refused(make, toys):
    data, model = toys.clients([1.0], [0.0]), toys.quadratic()
    algorithm = scaffold(local_training(model, optax.sgd(0.1), batch_plan(1, epochs=1)), learning_rate=0.1)
    settings = {"cohort_size": 1, "uplink": none(), "downlink": none(), "executor": chunked()}
    with pytest.raises(UserError, match="same columns"):
        simulate(algorithm, data, beside=make(0), **settings)


def test_another_clock_is_refused(make):
    """Programs have a clock or none, and the server's link is part of them."""
    with pytest.raises(UserError, match="system model or none"):
        make(1, make(0), same())
    with pytest.raises(UserError, match="same server's link"):
        make(1, make(0, None, same()), same()._replace(server=ServerLink(1.0, 1.0)))
    assert make(1, make(0, None, same()), same(2.0)).system.timed  # other speeds are data


def test_runs_that_share_nothing_are_refused(make):
    with pytest.raises(UserError, match="beside"):
        side_by_side([make(0), make(1)])
