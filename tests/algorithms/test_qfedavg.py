"""q-FedAvg: a step by its formula, its uniform limit, and what it does for the client that fares worst."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.qfedavg import qfedavg
from fedjax8.local import scheduled

FLOAT32 = 2e-6
RATE = 0.1
A, B, N = np.array([1.0, 4.0, 2.0]), np.array([0.0, 1.0, -3.0]), np.array([1, 3, 2])


def in_numpy(q, rounds, steps, rate=lambda number: RATE):
    """x after each round of the published form, with L = 1 / eta."""
    x, xs = 0.5, []
    for number in range(rounds):
        eta, y = rate(number), np.full(3, x)
        for _ in range(steps):
            y -= eta * A * (y - B)
        loss, u = 0.5 * A * (x - B) ** 2 + 1e-10, (x - y) / eta
        x -= np.sum(loss**q * u) / np.sum(q * loss ** (q - 1) * u**2 + loss**q / eta)
        xs.append(x)
    return xs


def test_rounds_follow_the_published_form_at_the_rate_of_each_round(toys):
    halved = optax.exponential_decay(1.0, 1, 0.5)
    make = lambda local: qfedavg(scheduled(local, halved), RATE, 2.0)
    sim = toys.build(make, toys.clients(A, B, N), start=0.5, steps=2, batch_size=3)
    expected = in_numpy(2.0, 3, 2, lambda number: RATE * 0.5**number)
    np.testing.assert_allclose(toys.trajectory(sim, 3), expected, atol=5 * FLOAT32)


def test_with_q_zero_clients_count_alike_whatever_their_rows(toys):
    """As FedAvg with uniform weights, and not by examples; 4 bytes more go up."""
    make = functools.partial(qfedavg, learning_rate=RATE, q=0.0)
    sims = [
        toys.build(make, toys.clients(A, B, N), steps=2)
        for make in (make, functools.partial(fedavg, weighting="uniform"))
    ]
    fair, plain = ([line for line in sim.run_rounds(sim.init(), 3)[1]] for sim in sims)
    xs = [float(sim.variables(sim.run_rounds(sim.init(), 3)[0]).params["x"]) for sim in sims]
    assert xs[0] == pytest.approx(xs[1], abs=FLOAT32)
    assert (fair[-1]["uplink_bytes"], plain[-1]["uplink_bytes"]) == (3 * 3 * 8, 3 * 3 * 4)


@pytest.mark.slow
def test_one_client_moves_by_its_loss_over_its_curvature(toys):
    """q = 1: by F (y - x) / (L |y - x|^2 + F)."""
    sim = toys.build(functools.partial(qfedavg, learning_rate=RATE, q=1.0), toys.clients([4.0], [1.0]), steps=1)
    loss, way = 2.0, 0.4
    assert toys.trajectory(sim, 1)[0] == pytest.approx(loss * way / (way**2 / RATE + loss), abs=FLOAT32)


@pytest.mark.parametrize("settings", [{"q": -1.0}, {"q": float("inf")}, {"learning_rate": 0.0}])
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match="must be a number above 0"):
        toys.build(functools.partial(qfedavg, **{"learning_rate": RATE} | settings), toys.q2(), steps=1)
