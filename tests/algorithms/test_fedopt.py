"""FedOpt: the first adaptive steps in closed form, the limit of momentum, and plain SGD."""

import functools

import numpy as np
import optax
import pytest

from fedjax8.algorithms import server_optimizers
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedopt import fedopt

FLOAT32 = 2e-6  # a few units in the last place near 1


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
