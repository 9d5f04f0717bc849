"""Delayed gradients: their equation in NumPy, the edge of stability, delays by depth."""

import functools

import numpy as np
import pytest

from fedjax8.algorithms.delayed import delayed, delays_of
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.errors import UserError

FLOAT32 = 2e-6


def test_without_delay_it_is_sgd_bit_for_bit(toys):
    sims = [
        toys.build(make, toys.q2(), steps=1, start=3.0, rounds_per_call=16)
        for make in (functools.partial(delayed, delay=0), functools.partial(fedavg, payload="update"))
    ]
    got, want = (sim.variables(sim.run_rounds(sim.init(), 16)[0]).params["x"] for sim in sims)
    assert got == want


@pytest.mark.parametrize("delay", [1, 3])
def test_the_gradient_of_a_step_is_that_of_the_model_so_many_steps_ago(toys, delay):
    a, b = np.array([1.0, 4.0]), np.array([0.0, 1.0])
    sim = toys.build(functools.partial(delayed, delay=delay), toys.clients(a, b), steps=1, start=3.0)
    x = [3.0]
    for t in range(12):
        gradient = np.mean(a * (x[t - delay] - b)) if t >= delay else 0.0
        x.append(x[t] - toys.LEARNING_RATE * gradient)
    np.testing.assert_allclose(toys.trajectory(sim, 12), x[1:], atol=10 * FLOAT32)


@pytest.mark.parametrize(("curvature", "stable"), [(9.5, True), (10.5, False)])
def test_a_delay_of_one_is_stable_exactly_below_a_product_of_rate_and_curvature_of_1(toys, curvature, stable):
    """x <- x - 0.1 a x_before: the roots of z^2 - z + 0.1 a have the modulus sqrt(0.1 a) from 0.1 a = 1/4 on."""
    sim = toys.build(delayed, toys.clients([curvature], [0.0]), steps=1, start=1.0, rounds_per_call=128)
    state, _ = sim.run_rounds(sim.init(), 128)
    size = np.hypot(*[float(sim.variables(s).params["x"]) for s in (state, sim.run_round(state)[0])])
    rate = np.sqrt(toys.LEARNING_RATE * curvature)
    assert (size < 0.1) if stable else (size > 5)  # 0.95^64 = 0.04 and 1.05^64 = 23, times a bounded phase
    assert rate**128 / 4 < size < rate**128 * 4


def test_stages_delay_the_first_layers_longest():
    params = {f"layer_{i}": {"kernel": np.zeros(2), "bias": np.zeros(1)} for i in range(12)}
    delays = delays_of(params, 2, stages=4)
    assert [delays[f"layer_{i}/kernel"] for i in range(12)] == [6, 6, 6, 4, 4, 4, 2, 2, 2, 0, 0, 0]
    assert set(delays_of(params, 3, stages=1).values()) == {3}
    with pytest.raises(UserError, match="stages must be at most the model's 12 layers"):
        delays_of(params, 1, stages=13)


def test_each_part_of_a_model_waits_for_its_own_delay(toys):
    """x + h fits b = 0: the layer `body` is one step late, `head` is not."""
    sim = toys.build(functools.partial(delayed, stages=2), toys.clients([1.0], [0.0]), steps=1, model=toys.two_parts())
    x, h, old, state = 1.0, -2.0, 0.0, sim.init()
    for _ in range(6):
        gradient = x + h
        x, h, old = x - toys.LEARNING_RATE * old, h - toys.LEARNING_RATE * gradient, gradient
        state, _ = sim.run_round(state)
        params = sim.variables(state).params
        got = float(params["body"]["x"]), float(params["head"]["h"])
        assert got == pytest.approx((x, h), abs=FLOAT32)
