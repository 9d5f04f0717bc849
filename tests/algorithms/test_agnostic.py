"""Agnostic federated learning: its weights by hand and in NumPy, its saddle point, its uniform limit."""

import functools

import numpy as np
import pytest

from fedjax8.algorithms.agnostic import agnostic, risen
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.errors import UserError

FLOAT32 = 2e-6
A, B, N = np.array([1.0, 4.0, 2.0]), np.array([0.0, 1.0, -1.0]), np.array([1, 3, 2])


def projected(v):
    """The nearest point of the simplex: v less a number, cut at 0, such that the sum is 1 (found by bisection)."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(v - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(v - low, 0)


def weights_of(state):
    return np.asarray(state.clients.arrays()["algorithm"])


def test_the_weights_of_two_clients_move_as_by_hand(toys):
    """Losses 1 and 0 and gamma 0.5: (0.5, 0.5) + (0.5, 0) is projected to (0.75, 0.25), K lambda to (1.5, 0.5)."""
    make = functools.partial(agnostic, weight_learning_rate=0.5)
    sim = toys.build(make, toys.clients([2.0, 1.0], [1.0, 0.0]), steps=1)
    state, line = sim.run_round(sim.init())
    np.testing.assert_allclose(weights_of(state), [1.5, 0.5], atol=FLOAT32)
    assert line["largest_weight"] == pytest.approx(0.75) and line["largest_loss"] == pytest.approx(1.0)
    assert float(sim.variables(state).params["x"]) == pytest.approx(0.5 * 0.2, abs=FLOAT32)  # by the weights before
    assert (line["uplink_bytes"], line["downlink_bytes"]) == (2 * (4 + 4), 2 * 4)


def test_rounds_follow_the_equations(toys):
    """Three clients, two steps a round; one of the weights reaches 0. Evaluated is the mean of the models."""
    make = functools.partial(agnostic, weight_learning_rate=0.4)
    sim = toys.build(make, toys.clients(A, B, N), start=0.5, steps=2, batch_size=3)
    state, x, weights, xs = sim.init(), 0.5, np.full(3, 1 / 3), []
    for _ in range(4):
        y = np.full(3, x)
        for _ in range(2):
            y -= 0.1 * A * (y - B)
        loss = 0.5 * A * (x - B) ** 2
        x, weights = x + np.sum(weights * (y - x)), projected(weights + 0.4 * loss)
        xs.append(x)
        state, _ = sim.run_round(state)
        assert float(state.server.variables.params["x"]) == pytest.approx(x, abs=5 * FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(np.mean(xs), abs=5 * FLOAT32)
        np.testing.assert_allclose(weights_of(state), 3 * weights, atol=10 * FLOAT32)
    assert weights.min() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6, 1e9, 1e30])
def test_weights_stay_on_the_simplex_for_losses_of_any_size(size):
    losses = np.float32(size) * np.float32([1.0, 3.0, 3.0, 0.5]) / 4
    weights = np.asarray(risen(np.float32([0.4, 0.3, 0.2, 0.1]), 1.0, losses))
    exact = projected(np.maximum(np.float64([0.4, 0.3, 0.2, 0.1]) + (np.float64(losses) - losses.max()), -2))
    np.testing.assert_allclose(weights, exact, atol=FLOAT32)


@pytest.mark.slow
def test_both_clients_end_with_the_same_loss(toys):
    """Of Q2 the worst loss is least where x^2 = 4 (x - 1)^2, at 2/3; the optimum of the mean is 0.8."""
    make = functools.partial(agnostic, weight_learning_rate=0.5, evaluated="last")
    sim = toys.build(make, toys.q2(), steps=1)
    state = sim.init()
    for _ in range(4):
        state, _ = sim.run_rounds(state, 64)
    assert float(sim.variables(state).params["x"]) == pytest.approx(2 / 3, abs=1e-3)


@pytest.mark.slow
def test_with_weights_that_stay_it_is_fedavg_with_uniform_weights(toys):
    stay = functools.partial(agnostic, weight_learning_rate=0.0, evaluated="last")
    uniform = functools.partial(fedavg, weighting="uniform")
    xs = [toys.trajectory(toys.build(make, toys.clients(A, B, N), steps=2), 3) for make in (stay, uniform)]
    np.testing.assert_allclose(*xs, atol=FLOAT32)


def test_some_of_the_clients_and_settings_out_of_range_are_refused(toys):
    with pytest.raises(UserError, match="every client in every round"):
        toys.build(agnostic, toys.q2(), steps=1, cohort_size=1)
    for settings in ({"weight_learning_rate": -0.1}, {"evaluated": "best"}):
        with pytest.raises(ValueError, match="must"):
            toys.build(functools.partial(agnostic, **settings), toys.q2(), steps=1)
