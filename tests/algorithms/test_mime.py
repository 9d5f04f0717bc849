"""Mime: its limit, the central steps that it mimics, and its two exchanges in bytes."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms.mime import mime
from fedjax8.dropouts import with_dropout
from fedjax8.dropouts.deadline import deadline
from fedjax8.errors import UserError
from fedjax8.systems import same

FLOAT32 = 2e-6


def test_with_plain_sgd_it_finds_the_optimum_in_spite_of_drift(toys):
    """Q2, five steps a round: 0.8; FedAvg ends at 0.69."""
    sim = toys.build(functools.partial(mime, base_optimizer=optax.sgd(1.0)), toys.q2(), steps=5)
    state, lines = sim.run_rounds(sim.init(), 64)
    assert float(sim.variables(state).params["x"]) == pytest.approx(0.8, abs=1e-5)
    # Of one number: x down and c down, a gradient and an update up.
    assert lines[-1]["uplink_bytes"] == lines[-1]["downlink_bytes"] == 64 * 2 * (4 + 4)


@pytest.mark.slow
def test_one_step_is_a_central_step_of_the_base_optimizer(toys):
    """Clients of 2, 1 and 3 rows, weighed by them; momentum goes on from round to round."""
    a, b, n = np.array([1.0, 4.0, 2.0]), np.array([0.0, 1.0, 3.0]), np.array([2, 1, 3])
    sim = toys.build(mime, toys.clients(a, b, n), start=5.0, batch_size=3, epochs=1)
    x, velocity, expected = 5.0, 0.0, []
    for _ in range(4):
        velocity = 0.9 * velocity + np.average(a * (x - b), weights=n)
        x -= 0.1 * velocity
        expected.append(x)
    np.testing.assert_allclose(toys.trajectory(sim, 4), expected, atol=10 * FLOAT32)


def test_several_steps_follow_the_equations_with_the_state_held(toys):
    """Clients whose rows differ, full batches of three: y <- y - eta (g(y) - g(x) + c + rho s), in NumPy."""
    rows, rho = ([0.0, 1.0, 5.0], [2.0, -1.0]), 0.5
    make = functools.partial(
        mime, base_optimizer=optax.sgd(1.0, momentum=rho), weighting="uniform", server_learning_rate=0.5
    )
    sim = toys.build(make, toys.with_rows(rows), steps=3, batch_size=3)
    x, velocity, expected, b = 0.0, 0.0, [], np.array([np.mean(r) for r in rows])
    for _ in range(3):
        central, y = np.mean(x - b), np.full(2, x)
        for _ in range(3):
            y -= 0.1 * ((y - b) - (x - b) + central + rho * velocity)
        x, velocity = x + 0.5 * np.mean(y - x), rho * velocity + central
        expected.append(x)
    np.testing.assert_allclose(toys.trajectory(sim, 3), expected, atol=5 * FLOAT32)


@pytest.mark.slow
def test_a_client_that_is_late_in_the_first_exchange_is_sent_nothing_more(toys):
    """A second a step, time for the gradient of one row and two steps, not for that of ten rows."""
    data = toys.clients([1.0, 1.0], [0.0, 1.0], [1, 10])
    sim = toys.build(lambda local: with_dropout(mime(local), deadline(9.0)), data, steps=2, system=same(1.0))
    _, line = sim.run_round(sim.init())
    assert (line["dropped"], line["clients"]) == (1, 1)
    assert line["downlink_gradient_bytes"] == 4 and line["uplink_gradient_bytes"] == 4


def test_a_client_optimizer_with_a_state_of_its_own_is_refused(toys):
    sim = toys.build(mime, toys.q2(), steps=1, optimizer=optax.adam(0.1))
    with pytest.raises(UserError, match="belongs in base_optimizer"):
        sim.init()
