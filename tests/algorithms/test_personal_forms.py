"""ditto, apfl, pfedme, fedbn and ifca on numbers, by NumPy, and as the algorithms that they contain, bit for bit."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import codecs, executors
from fedjax8.algorithms.apfl import apfl
from fedjax8.algorithms.ditto import ditto
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedbn import fedbn
from fedjax8.algorithms.ifca import ifca
from fedjax8.algorithms.local_only import local_only
from fedjax8.algorithms.pfedme import pfedme
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen
from fedjax8.types import StepGradient

FLOAT32 = 4e-6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])
MEANS, SIZES = np.array([np.mean(rows) for rows in ROWS]), np.array([3, 2, 3])


def build(toys, make, rows=ROWS, **more):
    return toys.build(make, toys.with_rows(rows), **{"epochs": 2, "batch_size": 3} | more)


def memory(state):
    return state.clients.arrays()["algorithm"]["memory"]


class Net(nn.Module):
    """Two layers and a normalization between them."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.LayerNorm()(nn.tanh(nn.Dense(4)(x))))


@functools.cache
def network(make):
    """A simulation of a small network on clients of several sizes, in small batches."""
    random = np.random.default_rng(0)
    x = random.normal(size=(22, 3)).astype(np.float32)
    data = FederatedData.from_owners({"x": x, "y": np.int32(x[:, 0] > 0)}, np.arange(22) % 4, 4)
    local = local_training(from_linen(Net()), optax.sgd(0.2), batch_plan(2, epochs=1))
    how = {"cohort_size": 3, "uplink": codecs.fp8(), "downlink": codecs.fp8(), "executor": executors.loop()}
    return simulate(make(local), data, **how)


@functools.cache
def ended(make):
    sim = network(make)
    return sim.run_rounds(sim.init(), 3)[0]


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


UNPULLED, MIXED_NOT = functools.partial(ditto, pull=0.0), functools.partial(apfl, alpha=0.0)


def test_ditto_without_a_pull_is_local_training_beside_fedavg_bit_for_bit():
    own, shared, state = ended(local_only), ended(fedavg), ended(UNPULLED)
    assert_same(memory(state), own.clients.arrays()["algorithm"])
    assert_same(state.server.variables, shared.server.variables)
    assert state.ledger == shared.ledger


def test_apfl_with_alpha_0_is_fedavg_bit_for_bit():
    shared, state, sim = ended(fedavg), ended(MIXED_NOT), network(MIXED_NOT)
    assert_same(state.server.variables, shared.server.variables)
    of_client = jax.tree.map(lambda x: x[1], state.clients.arrays()["algorithm"])
    assert_same(sim.algorithm.personal(state.server, of_client), shared.server.variables)


def test_ditto_by_numpy(toys):
    pull, rate = 0.7, toys.LEARNING_RATE
    sim = build(toys, functools.partial(ditto, pull=pull))
    state, x, v = sim.init(), 0.0, np.zeros(3)
    for _ in range(3):
        y = np.full(3, x)
        for _ in range(2):
            y = y - rate * (y - MEANS)
            v = v - rate * (v - MEANS + pull * (v - x))
        x = np.average(y, weights=SIZES)
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(memory(state).params["x"], v, atol=FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=FLOAT32)


@pytest.mark.parametrize("alpha_rate", [0.0, 0.3])
def test_apfl_by_numpy(toys, alpha_rate):
    rate = toys.LEARNING_RATE
    sim = build(toys, functools.partial(apfl, alpha=0.4, alpha_rate=alpha_rate))
    state, x, v, alpha = sim.init(), 0.0, np.zeros(3), np.full(3, 0.4)
    for _ in range(4):
        w = np.full(3, x)
        for _ in range(2):
            gradient = alpha * v + (1 - alpha) * w - MEANS
            slope = gradient * (v - w)
            w, v = w - rate * (w - MEANS), v - rate * alpha * gradient
            alpha = np.clip(alpha - alpha_rate * slope, 0, 1)
        x = np.average(w, weights=SIZES)
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(memory(state).own.params["x"], v, atol=FLOAT32)
        np.testing.assert_allclose(memory(state).alpha, alpha, atol=FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=FLOAT32)
    of_first = jax.tree.map(lambda leaf: leaf[0], state.clients.arrays()["algorithm"])
    own = sim.algorithm.personal(state.server, of_first).params["x"]
    assert float(own) == pytest.approx(alpha[0] * v[0] + (1 - alpha[0]) * x, abs=FLOAT32)


def test_pfedme_by_numpy_with_a_shorter_last_repetition(toys):
    pull, rate, beta, inner = 2.0, 0.3, 0.5, 3
    make = functools.partial(pfedme, pull=pull, rate=rate, beta=beta, inner_steps=inner)
    sim = build(toys, make, epochs=5)
    state, x, theta = sim.init(), 0.0, np.zeros(3)
    for _ in range(3):
        w = np.full(3, x)
        for steps in (3, 2):
            for _ in range(steps):
                theta = theta - toys.LEARNING_RATE * (theta - MEANS + pull * (theta - w))
            w = w - rate * pull * (w - theta)
        x = (1 - beta) * x + beta * w.mean()
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(memory(state).params["x"], theta, atol=FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=FLOAT32)


def test_pfedme_ends_where_all_envelopes_have_no_slope_together(toys):
    """theta_i = (a_i b_i + lambda x) / (a_i + lambda), and x their mean: sum a b / (a + lambda) over sum a / (a +
    lambda)."""
    a, b, pull = np.array([1.0, 4.0]), np.array([0.0, 1.0]), 2.0
    make = functools.partial(pfedme, pull=pull, rate=0.5, inner_steps=60)
    sim = toys.build(make, toys.clients(a, b), steps=60)
    state, _ = sim.run_rounds(sim.init(), 60)
    x = np.sum(a * b / (a + pull)) / np.sum(a / (a + pull))
    assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=1e-5)
    np.testing.assert_allclose(memory(state).params["x"], (a * b + pull * x) / (a + pull), atol=1e-5)


def test_fedbn_keeps_normalization_layers_and_sends_the_rest():
    sim, state = network(fedbn), ended(fedbn)
    kept = state.clients.arrays()["algorithm"]["private"]
    assert set(kept) == {"LayerNorm_0"} and len(np.unique(np.asarray(kept["LayerNorm_0"]["scale"])[:, 0])) > 1
    start = sim.init().server.variables.params["LayerNorm_0"]
    assert_same(state.server.variables.params["LayerNorm_0"], start)
    whole, norms = 3 * 4 + 4 + 4 * 2 + 2 + 8, 8
    unencoded = ended(fedavg).ledger.float32_bytes - state.ledger.float32_bytes
    assert (unencoded, ended(fedavg).ledger.float32_bytes) == (2 * 3 * 3 * 4 * norms, 2 * 3 * 3 * 4 * whole)


def test_fedbn_refuses_a_model_without_normalization(toys):
    with pytest.raises(UserError, match=r"\[Nn\]orm"):
        build(toys, fedbn, model=toys.two_parts()).init()


def test_ifca_with_one_model_is_fedavg(toys):
    ends = []
    for make in (functools.partial(ifca, clusters=1), fedavg):
        sim = build(toys, make)
        ends.append(float(sim.variables(sim.run_rounds(sim.init(), 3)[0]).params["x"]))
    assert ends[0] == pytest.approx(ends[1], abs=FLOAT32)


def test_two_groups_of_clients_find_a_model_each(toys):
    """Four clients around -10 and two around 10: each model ends at the mean of its group's rows, weighted by rows."""
    rows = ([-9.0, -11.0], [10.0, 12.0, 8.0], [-8.0], [-12.0, -10.0], [11.0], [-9.0])
    sim = build(toys, functools.partial(ifca, spread=2.0, seed=1), rows)
    state, lines = sim.run_rounds(sim.init(), 60)
    chosen = np.asarray(state.clients.arrays()["algorithm"])
    group = np.array([0, 1, 0, 0, 1, 0])
    assert len(set(chosen[group == 0])) == 1 and set(chosen[group == 1]) == set(range(2)) - set(chosen[group == 0])
    sizes, means = np.array([len(r) for r in rows]), np.array([np.mean(r) for r in rows])
    models = [float(params["x"]) for params in state.server.memory.params]
    for which in (0, 1):
        here = group == which
        expected = np.average(means[here], weights=sizes[here])
        assert models[chosen[here][0]] == pytest.approx(expected, abs=1e-3)
    assert float(sim.variables(state).params["x"]) == models[chosen[0]]
    assert lines[-1]["largest_cluster"] == pytest.approx(4 / 6)
    own = jax.tree.map(lambda x: x[1], state.clients.arrays()["algorithm"])
    assert float(sim.algorithm.personal(state.server, own).params["x"]) == models[chosen[1]]


def test_a_model_that_nobody_chose_keeps_its_value_and_its_bytes_stay(toys):
    sim = build(toys, functools.partial(ifca, clusters=3, spread=1e-6), [[1.0], [2.0]], start=1.5)
    before = sim.init()
    state, _ = sim.run_round(before)
    models = [float(params["x"]) for params in state.server.memory.params]
    starts = [float(params["x"]) for params in before.server.memory.params]
    chosen = set(np.asarray(state.clients.arrays()["algorithm"]).tolist())
    assert all(models[j] == starts[j] for j in range(3) if j not in chosen) and len(chosen) < 3
    assert state.ledger.downlink_bytes == 2 * 3 * 4 and state.ledger.uplink_bytes == 2 * (4 + 1)


@pytest.mark.parametrize("make", [ditto, apfl, pfedme, ifca], ids=lambda make: make.__name__)
def test_steps_that_no_accountant_knows_are_refused(toys, make):
    with pytest.raises(UserError, match="accounting of private gradients"):
        _ = build(toys, make, gradient=StepGradient(accounted=True))._traced


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (functools.partial(ditto, pull=-1.0), "pull must be"),
        (functools.partial(apfl, alpha=1.5), "alpha must be"),
        (functools.partial(apfl, alpha_rate=float("inf")), "alpha_rate"),
        (functools.partial(pfedme, pull=15.0, rate=0.1), "product at most 1"),
        (functools.partial(pfedme, inner_steps=0), "inner_steps must be"),
        (functools.partial(ifca, clusters=0), "clusters must be"),
        (functools.partial(ifca, spread=0.0), "spread above 0"),
    ],
)
def test_settings_out_of_range_are_refused(toys, make, says):
    with pytest.raises(ValueError, match=says):
        build(toys, make)
