"""FedGATE: its limit on the quadratics, its trajectory by a loop, and clients that pause."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedgate import fedgate
from fedjax8.local import scheduled
from fedjax8.participation import Participation, stages
from fedjax8.participation.base import all_kept, exactly

A, B, ETA, STEPS = [1.0, 4.0], [0.0, 1.0], 0.1, 5


def make(toys, **settings):
    return functools.partial(fedgate, learning_rate=ETA, **settings)


def by_hand(rounds, eta_s=1.0, who=lambda r: (0, 1), eta=lambda r: ETA):
    """x after each round; the mean is sent at once here, to those who take part in the round after too."""
    x, delta, found = 0.0, np.zeros(2), []
    for r in range(rounds):
        moved = {}
        for i in who(r):
            y = x
            for _ in range(STEPS):
                y -= eta(r) * (A[i] * (y - B[i]) - delta[i])
            moved[i] = y - x
        mean = np.mean(list(moved.values()))
        for i, own in moved.items():
            if i in who(r + 1):
                delta[i] += (mean - own) / (STEPS * eta(r))
        x += eta_s * mean
        found.append(x)
    return found


def test_it_reaches_the_optimum_where_fedavg_drifts(toys):
    limits = []
    for algorithm in (make(toys), fedavg):
        sim = toys.build(algorithm, toys.q2(), steps=STEPS)
        state = sim.init()
        while state.round < 192:
            state, line = sim.run_rounds(state, 192 - state.round)
        limits.append(float(sim.variables(state).params["x"]))
    assert limits == [pytest.approx(0.8, abs=2e-6), pytest.approx(0.6925023465, abs=2e-6)]
    assert line[-1]["uplink_bytes"] == line[-1]["downlink_bytes"] == 192 * 2 * 4


@pytest.mark.parametrize("eta_s", [1.0, 0.5])
def test_rounds_are_those_of_the_equations(toys, eta_s):
    sim = toys.build(make(toys, server_learning_rate=eta_s), toys.q2(), steps=STEPS)
    np.testing.assert_allclose(toys.trajectory(sim, 6), by_hand(6, eta_s), rtol=2e-5)


def test_a_schedule_is_in_the_length_of_the_steps(toys):
    rate = optax.linear_schedule(1.0, 0.5, 4)
    sim = toys.build(lambda local: make(toys)(scheduled(local, rate)), toys.q2(), steps=STEPS)
    expected = by_hand(6, eta=lambda r: ETA * float(rate(r)))
    np.testing.assert_allclose(toys.trajectory(sim, 6), expected, rtol=2e-5)


def test_a_client_that_pauses_goes_on_with_what_it_has(toys):
    who = [(0, 1), (0,), (0, 1), (0, 1), (1,), (1,), (0, 1), (0, 1)]
    numbers = lambda num_clients, cohort_size: exactly(num_clients, cohort_size)._replace(least_asked=1, least_used=1)
    drawn = Participation(lambda ask: all_kept(np.array(who[ask.round % len(who)])), numbers)
    sim = toys.build(make(toys), toys.q2(), steps=STEPS, participation=drawn)
    np.testing.assert_allclose(toys.trajectory(sim, 7), by_hand(7, who=lambda r: who[r]), rtol=2e-5)


def test_flanp_ends_at_the_optimum_of_all_clients(toys):
    """The stages of FLANP with its own solver: the first client alone, then both."""
    sim = toys.build(make(toys), toys.q2(), steps=STEPS, participation=stages(1, 4))
    state, cohorts = sim.init(), []
    for _ in range(192):
        state, line = sim.run_round(state)
        cohorts.append(line["cohort"])
    assert cohorts[:5] == [1, 1, 1, 1, 2]
    assert float(sim.variables(state).params["x"]) == pytest.approx(0.8, abs=2e-6)
