"""Limits and steps that can be worked out by hand, on the quadratics of tests/toys.py."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms import server_optimizers
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedopt import fedopt
from fedjax8.algorithms.fedprox import fedprox
from fedjax8.algorithms.scaffold import scaffold

FLOAT32 = 2e-6  # a few units in the last place near 1


def fixed_point(shrink, optimum, weights):
    """The limit of x <- sum p_i (r_i x + (1 - r_i) b_i), with r_i a client's contraction over its local steps."""
    shrink, optimum, weights = map(np.asarray, (shrink, optimum, weights))
    pull = weights * (1 - shrink)
    return float(np.sum(pull * optimum) / np.sum(pull))


def test_fedavg_settles_where_client_drift_puts_it(toys):
    sim = toys.build(fedavg, toys.q2(), steps=5)
    limit = fixed_point([0.9**5, 0.6**5], [0.0, 1.0], [0.5, 0.5])
    assert limit == pytest.approx(0.6925023465, abs=1e-9)
    assert toys.trajectory(sim, 60)[-1] == pytest.approx(limit, abs=FLOAT32)


def test_fedavg_with_unequal_work_leans_to_the_busy_client(toys):
    sim = toys.build(functools.partial(fedavg, weighting="uniform"), toys.q3(), epochs=1)
    limit = fixed_point([0.9, 0.9**10], [0.0, 1.0], [0.5, 0.5])
    assert limit == pytest.approx(0.8669011974, abs=1e-9)
    assert toys.trajectory(sim, 60)[-1] == pytest.approx(limit, abs=FLOAT32)


@pytest.mark.parametrize("payload", ["params", "update"])
def test_one_full_batch_step_of_everyone_is_a_central_gradient_step(toys, payload):
    data = toys.clients([1.0, 4.0, 2.0], [0.0, 1.0, 3.0], [2, 1, 3])
    sim = toys.build(functools.partial(fedavg, payload=payload), data, start=5.0, batch_size=3, epochs=1)
    gradient = (2 * 1.0 * 5.0 + 1 * 4.0 * 4.0 + 3 * 2.0 * 2.0) / 6
    assert toys.trajectory(sim, 1)[0] == pytest.approx(5.0 - 0.1 * gradient, abs=5 * FLOAT32)


def test_examples_weigh_clients_by_their_size(toys):
    data = toys.clients([1.0, 1.0], [0.0, 1.0], [1, 3])
    sim = toys.build(fedavg, data, start=0.0, batch_size=3, epochs=1)
    assert toys.trajectory(sim, 1)[0] == pytest.approx(0.75 * 0.1, abs=FLOAT32)


def test_half_a_server_step_goes_half_the_way(toys):
    whole, half = (
        toys.trajectory(toys.build(functools.partial(fedavg, server_learning_rate=r), toys.q2(), steps=5), 1)[0]
        for r in (1.0, 0.5)
    )
    assert half == pytest.approx(0.5 * whole, abs=FLOAT32)


def test_fedprox_with_exact_solves_settles_at_eight_thirteenths(toys):
    sim = toys.build(functools.partial(fedprox, mu=1.0), toys.q2(), steps=200)
    assert toys.trajectory(sim, 40)[-1] == pytest.approx(8 / 13, abs=FLOAT32)


def test_fedprox_without_pull_is_fedavg_bit_for_bit(toys):
    plain, prox = (
        toys.trajectory(toys.build(make, toys.q2(), steps=5), 10)
        for make in (fedavg, functools.partial(fedprox, mu=0.0))
    )
    assert plain == prox


def test_fedprox_with_a_strong_pull_holds_the_model(toys):
    sim = toys.build(functools.partial(fedprox, mu=9.0), toys.q2(), start=0.0, steps=300)
    moved = toys.trajectory(sim, 1)[0]  # the exact solve moves client 2 to 4/13 and client 1 not at all
    assert moved == pytest.approx(0.5 * 4 / 13, abs=FLOAT32)


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


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        (server_optimizers.fedadagrad(1.0), 0.998002),
        (server_optimizers.fedadam(1.0), 0.980201902),
        (server_optimizers.fedyogi(1.0), 0.980199980),
    ],
)
def test_the_first_adaptive_server_step_has_its_closed_form(optimizer, step):
    params = {"x": np.float32(0.0)}
    updates, _ = optimizer.update({"x": np.float32(-0.5)}, optimizer.init(params), params)
    assert float(updates["x"]) == pytest.approx(step, rel=1e-6)


def test_server_momentum_carries_a_constant_update_to_its_limit():
    optimizer = server_optimizers.fedavgm(1.0, momentum=0.9)
    params = {"x": np.float32(0.0)}
    state = optimizer.init(params)
    for _ in range(300):
        updates, state = optimizer.update({"x": np.float32(-0.5)}, state, params)
    assert float(updates["x"]) == pytest.approx(0.5 / (1 - 0.9), rel=1e-5)


def test_fedopt_with_plain_sgd_is_fedavg(toys):
    averaged = toys.trajectory(toys.build(fedavg, toys.q2(), steps=5), 10)
    stepped = toys.trajectory(
        toys.build(functools.partial(fedopt, server_optimizer=optax.sgd(1.0)), toys.q2(), steps=5), 10
    )
    np.testing.assert_allclose(averaged, stepped, atol=FLOAT32)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(fedavg, payload="both"),
        functools.partial(fedavg, weighting="size"),
        functools.partial(fedavg, model_state="shared"),
        functools.partial(fedprox, mu=-1.0),
        functools.partial(scaffold, learning_rate=0.0),
        functools.partial(scaffold, learning_rate=0.1, option="III"),
    ],
)
def test_settings_out_of_range_are_refused(toys, make):
    with pytest.raises(ValueError, match=r"must|need"):
        toys.build(make, toys.q2(), steps=1)
