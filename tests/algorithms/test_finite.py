"""Clients that send numbers that are huge, or none: after every round all states are finite, whoever did it is left out
and named, the others' round is the one that they would have had without it, and they take part in the next one.

The clients of a run have a column `bomb` that is added to every gradient: with steps of 1 it is, with its sign turned,
the update. It is an input of the compiled program, so that one program serves all magnitudes.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import codecs, privacy, trees
from fedjax8.adapters.lora import lora
from fedjax8.adapters.qat import qat
from fedjax8.algorithms import aggregators, monitors, server_optimizers
from fedjax8.algorithms.dp_fedavg import dp_fedavg
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fda_opt import fda_opt
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedcode import fedcode
from fedjax8.algorithms.fedlora import fedlora
from fedjax8.algorithms.fedopt import fedopt
from fedjax8.algorithms.fedprox import fedprox
from fedjax8.algorithms.hetlora import hetlora
from fedjax8.algorithms.refinements.uq_plus import uq_plus
from fedjax8.algorithms.rolora import rolora
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.attacks import attacked, gaussian, inner_product, little_is_enough, sign_flip
from fedjax8.cohorts.loop import loop
from fedjax8.cohorts.pmap import pmap
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.dropouts import random, with_dropout
from fedjax8.local import local_training
from fedjax8.lookup import component_names
from fedjax8.models.linen import from_linen
from fedjax8.simulation.simulation import simulate

pytestmark = pytest.mark.usefixtures("compiled_quickly")

CLIENTS, GUILTY, FEATURES = 5, 2, 3
MAGNITUDES = (1e19, -1e30, 1e37, 3e38, np.nan)
FLOAT32 = {"rtol": 2e-5, "atol": 1e-6}  # sums of a few float32 in another order


class Net(nn.Module):
    """A layer to adapt and a head."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(2, name="first")(x))


def with_bombs(model):
    """The model, its loss's gradient by every parameter enlarged by the column `bomb`, its loss as it was."""

    def apply(variables, batch, **options):
        outputs, state = model.apply(variables, batch, **options)
        still = jax.lax.stop_gradient(variables.params)
        nothing = sum(jnp.sum(x - y) for x, y in zip(*map(jax.tree.leaves, (variables.params, still)), strict=True))
        return (outputs, jnp.broadcast_to(nothing, batch["bomb"].shape)), state

    def loss(outputs, batch):
        return model.loss(outputs[0], batch) + batch["bomb"] * outputs[1]

    return model._replace(apply=apply, loss=loss, metrics=lambda outputs, batch: model.metrics(outputs[0], batch))


@functools.cache
def rows() -> FederatedData:
    """A row for each client, and a bomb that is none."""
    rng = np.random.default_rng(11)
    x = rng.normal(size=(CLIENTS, FEATURES)).astype(np.float32)
    columns = {"x": x, "y": np.int32([0, 1, 1, 0, 1]), "bomb": np.zeros(CLIENTS, np.float32)}
    return FederatedData.from_owners(columns, np.arange(CLIENTS), CLIENTS)


def simulation(make, *, adapt=lambda model: model, up=None, down=None, execution=None, steps=1):
    model, plan = with_bombs(adapt(from_linen(Net()))), batch_plan(1, steps=steps)
    return simulate(
        model,
        make(local_training(model, optax.sgd(1.0), plan)),
        rows(),
        cohort_size=CLIENTS,
        uplink=up or codecs.none(),
        downlink=down or codecs.none(),
        execution=execution or loop(),
        batches=plan,
    )


def one_round(sim, state, bombs=(), without=()):
    """(state, line) of the next round with these `(client, bomb)`, and with no rows for the clients in `without`."""
    begun, column = sim.parts.begin(state, 1), np.zeros(CLIENTS, np.float32)
    for client, bomb in bombs:
        column[client] = bomb
    where = begun.share.rows
    sizes = np.where(np.isin(begun.share.ids, list(without)), 0, where.sizes)
    share = begun.share._replace(rows=where._replace(sizes=sizes))
    columns = {**sim.parts.columns(), "bomb": sim.parts.columns()["bomb"] * 0 + column}
    (carried, outcomes), new = sim.parts.common.compiled()((columns, begun.carried, begun.settings), share)
    state, lines = sim.parts.finish(state, begun.plan, carried, outcomes, new)
    assert_finite(state)
    return state, lines[0]


def assert_finite(state):
    """All that a run carries; a threshold may be infinite by its setting."""
    server = state.server._replace(threshold=0.0) if hasattr(state.server, "threshold") else state.server
    for leaf in jax.tree.leaves((server, state.down_states, state.clients.arrays())):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


def same(got, want, exactly=False):
    check = np.testing.assert_array_equal if exactly else functools.partial(np.testing.assert_allclose, **FLOAT32)
    jax.tree.map(check, got, want)


def assert_left_out(sim, magnitudes=MAGNITUDES):
    """One guilty client of several, at first and again; then all of them."""
    start = sim.init()
    honest, _ = one_round(sim, start, without=[GUILTY])
    later, _ = one_round(sim, honest, without=[GUILTY])
    for bomb in magnitudes:
        state, line = one_round(sim, start, [(GUILTY, bomb)])
        assert line["excluded_clients"] == [GUILTY] and line["excluded"] >= 1, bomb
        assert "rejected" not in line and np.isfinite(line["train_loss"])
        same(state.server, honest.server)
        again, line = one_round(sim, state, [(GUILTY, bomb)])
        assert line["excluded_clients"] == [GUILTY]
        same(again.server, later.server)
    healed, line = one_round(sim, state)
    assert line["excluded"] == 0 and line["clients"] == CLIENTS and "excluded_clients" not in line
    before = sim.variables(state)
    state, line = one_round(sim, state, [(client, 1e30) for client in range(CLIENTS)])
    assert line["excluded_clients"] == list(range(CLIENTS))
    same(sim.variables(state), before, exactly=True)


def adapted(model):
    return lora(model, 2, alpha=2.0, targets="first")


ALGORITHMS = {
    "fedavg": (fedavg, {}),
    "fedavg update": (functools.partial(fedavg, payload="update"), {}),
    "fedprox": (functools.partial(fedprox, mu=0.1), {}),
    "fedopt": (functools.partial(fedopt, server_optimizer=server_optimizers.fedadam(0.1)), {}),
    "fedopt momentum": (functools.partial(fedopt, server_optimizer=server_optimizers.fedavgm(0.5)), {}),
    "scaffold": (functools.partial(scaffold, learning_rate=1.0), {}),
    "scaffold I": (functools.partial(scaffold, learning_rate=1.0, option="I"), {}),
    "uq_plus": (functools.partial(fedavg, refine=uq_plus(points=2)), {"adapt": qat}),
    "fedcode": (functools.partial(fedcode, clusters=4, down_period=1, up_period=1), {}),
    "fedcode books": (functools.partial(fedcode, clusters=4, start_round=0, up_period=9), {}),
    "fedlora stack": (fedlora, {"adapt": adapted}),
    "fedlora residual": (functools.partial(fedlora, merge="residual"), {"adapt": adapted}),
    "rolora": (rolora, {"adapt": adapted}),
    "hetlora": (functools.partial(hetlora, ranks=(2,)), {"adapt": adapted}),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_huge_client_is_left_out_of_every_algorithm(name):
    make, settings = ALGORITHMS[name]
    assert_left_out(simulation(make, **settings))


AGGREGATORS = {
    "mean": aggregators.mean(),
    "median": aggregators.median(),
    "trimmed_mean": aggregators.trimmed_mean(0.2),
    "krum": aggregators.krum(1, keep=2),
    "geometric_median": aggregators.geometric_median(),
    "norm_bound": aggregators.norm_bound(1.0),
    "nested": aggregators.norm_bound(1.0, then=aggregators.norm_bound(0.5, then=aggregators.median())),
}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_huge_client_is_left_out_of_every_aggregator(name):
    assert_left_out(simulation(functools.partial(fedavg, aggregate=AGGREGATORS[name])))


def test_no_aggregator_is_forgotten():
    assert set(AGGREGATORS) - {"nested"} == set(component_names("fedjax8.algorithms.aggregators"))
