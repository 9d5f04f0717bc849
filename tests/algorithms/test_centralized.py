"""Training on all rows at one place against plain SGD in NumPy, and what cannot be pooled."""

import numpy as np
import optax
import pytest

from fedjax8.algorithms.centralized import centralized
from fedjax8.attacks import attacked
from fedjax8.attacks.label_flip import label_flip
from fedjax8.data.federated import FederatedData
from fedjax8.errors import UserError
from fedjax8.executors.pmap import pmap

ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])
MEAN = np.mean(np.concatenate(ROWS))
STEPS = 3


@pytest.mark.parametrize("devices", [1, 2])
def test_it_is_sgd_on_all_rows_with_the_steps_of_the_cohort(toys, devices):
    """Two clients a round with three full-batch steps each are six steps on the mean of all rows; momentum goes on from
    round to round."""
    executor = pmap(num_devices=devices) if devices > 1 else None
    settings = {"optimizer": optax.sgd(0.1, momentum=0.5), "steps": STEPS, "batch_size": 8, "cohort_size": 2}
    sim = toys.build(centralized, toys.with_rows(ROWS), start=7.0, executor=executor, **settings)
    state, lines = sim.run_rounds(sim.init(), 2)
    x, velocity = 7.0, 0.0
    for _ in range(2 * 2 * STEPS):
        velocity = 0.5 * velocity + (x - MEAN)
        x -= 0.1 * velocity
    assert float(sim.variables(state).params["x"]) == pytest.approx(x, rel=1e-6)
    assert sim.discover() == [] and lines[-1]["uplink_bytes"] == lines[-1]["downlink_bytes"] == 0
    assert lines[-1]["clients"] == 2


def test_batches_are_drawn_over_all_clients(toys):
    """One step of batch 1 at rate 1 puts x onto a row: with every seed another one, of any client."""
    found = set()
    sim = toys.build(centralized, toys.with_rows(ROWS), steps=1, cohort_size=1, optimizer=optax.sgd(1.0))
    state = sim.init()
    for _ in range(60):
        state, _ = sim.run_round(state)
        found.add(round(float(sim.variables(state).params["x"]), 4))
    assert found == set(np.concatenate(ROWS).tolist())


def test_rows_that_are_not_pooled_are_refused(toys):
    with pytest.raises(UserError, match=r"must be resident .feed_mode is 'streamed'"):
        toys.build(centralized, toys.q2(), steps=1, feed_mode="streamed")
    data = toys.q3()
    starts, sizes = np.int64([0, 0]), np.int32([2, 2])
    with pytest.raises(UserError, match="in the window of one client"):
        toys.build(centralized, FederatedData(data.columns, data.order, starts, sizes), steps=1)


def test_nobody_is_there_to_attack(toys):
    make = lambda local: attacked(centralized(local), label_flip(0.5, num_classes=2))
    with pytest.raises(UserError, match="no clients that could attack"):
        toys.build(make, toys.q2(), steps=1).discover()
