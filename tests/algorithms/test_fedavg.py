"""FedAvg: limits and steps that can be worked out by hand, on the quadratics of tests/toys.py."""

import functools

import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg

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


@pytest.mark.parametrize("settings", [{"payload": "both"}, {"weighting": "size"}, {"model_state": "shared"}])
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match=r"must|need"):
        toys.build(functools.partial(fedavg, **settings), toys.q2(), steps=1)
