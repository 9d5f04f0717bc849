"""MimeLite: the central steps that it mimics, its equations in NumPy, its bytes."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.mimelite import mimelite

FLOAT32 = 2e-6


def test_several_steps_follow_the_equations_with_the_state_held(toys):
    a, b, n, rho = np.array([1.0, 4.0]), np.array([0.0, 1.0]), np.array([1, 3]), 0.5
    make = functools.partial(mimelite, base_optimizer=optax.sgd(1.0, momentum=rho))
    sim = toys.build(make, toys.clients(a, b, n), steps=3, batch_size=3)
    state, x, velocity = sim.init(), 0.0, 0.0
    for number in range(3):
        y = np.full(2, x)
        for _ in range(3):
            y -= 0.1 * (a * (y - b) + rho * velocity)
        velocity = rho * velocity + np.average(a * (x - b), weights=n)
        x += np.average(y - x, weights=n)
        state, line = sim.run_round(state)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=5 * FLOAT32)
        # x and the momentum down, an update and a gradient up
        assert line["uplink_bytes"] == line["downlink_bytes"] == (number + 1) * 2 * (4 + 4)


@pytest.mark.slow
def test_over_plain_sgd_it_is_fedavg(toys):
    lite = functools.partial(mimelite, base_optimizer=optax.sgd(1.0))
    xs = [toys.trajectory(toys.build(make, toys.q2(), steps=3), 3) for make in (lite, fedavg)]
    np.testing.assert_allclose(*xs, atol=FLOAT32)


@pytest.mark.slow
def test_adam_on_the_server_corrects_its_moments_by_the_servers_steps(toys):
    """One full-batch step of one client from 1 down a slope of 1, in NumPy: each step has the length of the rate."""
    sim = toys.build(
        functools.partial(mimelite, base_optimizer=optax.adam(1.0)), toys.clients([1.0], [0.0]), start=1.0, steps=1
    )
    x, m, v, expected = 1.0, 0.0, 0.0, []
    for t in range(1, 4):
        m, v = 0.9 * m + 0.1 * x, 0.999 * v + 0.001 * x * x
        x -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        expected.append(x)
    np.testing.assert_allclose(toys.trajectory(sim, 3), expected, atol=10 * FLOAT32)
