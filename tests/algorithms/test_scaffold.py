"""SCAFFOLD: its optimum, its two options, and its equations in NumPy."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms.scaffold import scaffold
from fedjax8.local import scheduled

FLOAT32 = 2e-6  # a few units in the last place near 1
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])


@pytest.mark.parametrize("option", ["I", "II"])
def test_scaffold_finds_the_true_optimum(toys, option):
    sim = toys.build(functools.partial(scaffold, learning_rate=toys.LEARNING_RATE, option=option), toys.q2(), steps=5)
    assert toys.trajectory(sim, 150)[-1] == pytest.approx(0.8, abs=1e-5)


def test_scaffold_options_agree_for_one_full_batch_step(toys):
    one, two = (
        toys.trajectory(
            toys.build(
                functools.partial(scaffold, learning_rate=toys.LEARNING_RATE, option=option), toys.q2(), steps=1
            ),
            20,
        )
        for option in ("I", "II")
    )
    np.testing.assert_allclose(one, two, atol=FLOAT32)


def test_the_control_variate_of_the_server_is_the_mean_of_the_clients(toys):
    data = toys.clients([1.0, 4.0, 2.0, 0.5], [0.0, 1.0, -1.0, 2.0])
    make = functools.partial(scaffold, learning_rate=toys.LEARNING_RATE)
    sim = toys.build(make, data, steps=3, cohort_size=2)
    state = sim.init()
    for _ in range(12):
        state, _ = sim.run_round(state)
        own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
        assert float(state.server.memory["x"]) == pytest.approx(own.mean(), abs=1e-5)
    assert np.all(own != 0)


def test_scaffold_with_several_steps_and_decay_follows_its_equations(toys):
    """Full batches, three steps a round at rates 0.1 and 0.05: option II divides by the steps and by the rate of its
    round."""
    steps, decay, rounds = 3, 0.5, 3
    halved = optax.exponential_decay(1.0, 1, decay)
    make = lambda local: scaffold(scheduled(local, halved), learning_rate=toys.LEARNING_RATE)
    sim = toys.build(make, toys.with_rows(ROWS), steps=steps, batch_size=3)
    x, c, own = 0.0, 0.0, np.zeros(len(ROWS))
    state = sim.init()
    for number in range(rounds):
        rate, ends = toys.LEARNING_RATE * decay**number, np.full(len(ROWS), x)
        for _ in range(steps):
            ends -= rate * ((ends - [np.mean(rows) for rows in ROWS]) - own + c)
        new = own - c + (x - ends) / (steps * rate)
        x, c, own = ends.mean(), c + (new - own).mean(), new
        state, _ = sim.run_round(state)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=FLOAT32)
        # The variate is a difference divided by S eta, 0.3 down to 0.075.
        np.testing.assert_allclose(state.clients.arrays()["algorithm"]["memory"]["x"], own, atol=20 * FLOAT32)


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"learning_rate": 0.1, "option": "III"}])
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match=r"must|need"):
        toys.build(functools.partial(scaffold, **settings), toys.q2(), steps=1)
