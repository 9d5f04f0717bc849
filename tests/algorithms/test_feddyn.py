"""FedDyn: its limit with exact solves, its equations in NumPy, and what may be evaluated."""

import functools

import numpy as np
import pytest

from fedjax8.algorithms.feddyn import feddyn

FLOAT32 = 2e-6


def test_with_exact_solves_it_finds_the_optimum_though_one_client_takes_part(toys):
    """Q2 with alpha 1: 0.8, with a random one of the two clients a round; 150 steps solve to 0.8^150."""
    sim = toys.build(functools.partial(feddyn, alpha=1.0), toys.q2(), steps=150, cohort_size=1)
    state, _ = sim.run_rounds(sim.init(), 64)
    state, _ = sim.run_rounds(state, 64)
    assert float(sim.variables(state).params["x"]) == pytest.approx(0.8, abs=1e-5)


def test_rounds_of_some_clients_follow_the_equations(toys):
    """Two of three clients a round, three steps each; who was there is read off the memories that changed."""
    a, b, alpha, x, h = np.array([1.0, 4.0, 2.0]), np.array([0.0, 1.0, -1.0]), 0.3, 0.5, np.zeros(3)
    make = functools.partial(feddyn, alpha=alpha, evaluated="average")
    sim = toys.build(make, toys.clients(a, b), start=x, steps=3, cohort_size=2)
    state = sim.init()
    for _ in range(4):
        before = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
        state, _ = sim.run_round(state)
        after = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
        there = np.flatnonzero(before != after)
        y = np.full(3, x)
        for _ in range(3):
            y -= 0.1 * (a * (y - b) + alpha * (h + y - x))
        h[there] += (y - x)[there]
        average = y[there].mean()
        x = average + h.mean()
        assert len(there) == 2
        assert float(state.server.variables.params["x"]) == pytest.approx(x, abs=FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(average, abs=FLOAT32)
        np.testing.assert_allclose(after, h, atol=5 * FLOAT32)


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"alpha": float("inf")}, {"evaluated": "both"}])
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match="must be"):
        toys.build(functools.partial(feddyn, **settings), toys.q2(), steps=1)
