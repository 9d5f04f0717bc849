"""FedNova: its limit, its normalizers in closed form, and the number that no codec touches."""

import functools

import numpy as np
import optax
import pytest

from fedjax8 import trees
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fednova import fednova, normalizer
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.local import local_training, proximal, scheduled
from fedjax8.types import Pool

POOL = Pool({}, None)
FLOAT32 = 2e-6


def test_unequal_work_moves_the_limit_far_less_than_under_fedavg(toys):
    """Q3, one step against ten: p_i (1 - r_i) / S_i instead of p_i (1 - r_i), 0.394 where FedAvg ends at 0.867."""
    pull = np.array([1 - 0.9, (1 - 0.9**10) / 10])
    limit = pull[1] / pull.sum()
    assert limit == pytest.approx(0.3944244269, abs=1e-9)
    sim = toys.build(functools.partial(fednova, weighting="uniform"), toys.q3(), epochs=1)
    state, lines = sim.run_rounds(sim.init(), 64)
    assert float(sim.variables(state).params["x"]) == pytest.approx(limit, abs=FLOAT32)
    assert lines[-1]["effective_steps"] == pytest.approx(5.5, rel=1e-6)
    assert lines[-1]["uplink_bytes"] == 64 * 2 * (4 + 4) and lines[-1]["downlink_bytes"] == 64 * 2 * 4


@pytest.mark.slow
def test_with_equal_work_it_is_fedavg(toys):
    nova, avg = (toys.trajectory(toys.build(make, toys.q2(), steps=5), 4) for make in (fednova, fedavg))
    np.testing.assert_allclose(nova, avg, atol=FLOAT32)


def closed_forms():
    momentum = 1 + 1.9 + 2.71  # k of three steps at rho 0.9
    nesterov = sum(1 + 0.9 * k for k in (1, 1.9, 2.71)) / 1.9  # of a first step that is 1.9 long
    pulled = (1 - (1 - 0.1 * 0.5) ** 3) / (0.1 * 0.5)
    halved = (1 - (1 - 0.05 * 0.5) ** 3) / (0.05 * 0.5)  # at half the rate
    return {
        "plain": (optax.sgd(0.1), 0.0, None, 3.0),
        "momentum": (optax.sgd(0.1, momentum=0.9), 0.0, None, momentum),
        "nesterov": (optax.sgd(0.1, momentum=0.9, nesterov=True), 0.0, None, nesterov),
        "proximal": (optax.sgd(0.1), 0.5, None, pulled),
        "scheduled": (optax.sgd(1.0), 0.5, lambda number: 0.05, halved),
        "nothing moves": (optax.sgd(1.0), 0.0, lambda number: 0.0, 0.0),
    }


@pytest.mark.parametrize("case", ["plain", "momentum", "nesterov", "proximal", "scheduled", "nothing moves"])
def test_normalizers_have_their_closed_forms(toys, case):
    optimizer, mu, schedule, expected = closed_forms()[case]
    local = proximal(local_training(toys.quadratic(), optimizer, batch_plan(1, steps=3)), mu)
    local = local if schedule is None else scheduled(local, schedule)
    assert float(normalizer(local, 3, POOL)) == pytest.approx(expected, rel=1e-5)
    assert float(normalizer(local, 0, POOL)) == 0.0


def test_the_normalizer_arrives_as_it_is_though_the_codec_loses_all(toys):
    def encode(key, state, tree):
        return trees.scale(0.0, tree), state

    sim = toys.build(fednova, toys.q3(), start=0.25, epochs=1, uplink=none()._replace(encode=encode))
    state, line = sim.run_round(sim.init())
    assert line["effective_steps"] == pytest.approx((1 * 1 + 10 * 10) / 11)
    assert float(sim.variables(state).params["x"]) == 0.25


def test_a_kept_optimizer_is_refused(toys):
    kept = lambda local: fednova(
        local_training(local.model, optax.sgd(0.1, momentum=0.9), local.plan, keep_optimizer=True)
    )
    with pytest.raises(UserError, match="keep_optimizer=True changes nothing here: fednova"):
        toys.build(kept, toys.q2(), steps=1)


@pytest.mark.slow
def test_momentum_is_normalized_in_a_round(toys):
    """Unequal steps with momentum on clients of one slope: both are sent as the same d_i, in NumPy."""
    sim = toys.build(
        functools.partial(fednova, weighting="uniform"),
        toys.clients([1.0, 1.0], [0.0, 1.0], [2, 4]),
        epochs=1,
        optimizer=optax.sgd(0.1, momentum=0.5),
    )
    moved, lengths = [], []
    for b, steps in ((0.0, 2), (1.0, 4)):
        y, velocity, k, length = 0.0, 0.0, 0.0, 0.0
        for _ in range(steps):
            velocity = 0.5 * velocity + (y - b)
            y, k = y - 0.1 * velocity, 0.5 * k + 1
            length += k
        moved.append(y / length)
        lengths.append(length)
    expected = np.mean(lengths) * np.mean(moved)
    state, _ = sim.run_round(sim.init())
    assert float(sim.variables(state).params["x"]) == pytest.approx(expected, abs=FLOAT32)
