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

from fedjax8 import codecs, trees
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
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.dropouts import random, with_dropout
from fedjax8.engine.simulation import simulate
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.local import local_training
from fedjax8.lookup import component_names
from fedjax8.models.linen import from_linen

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


def simulation(make, *, adapt=lambda model: model, up=None, down=None, executor=None, steps=1):
    model, plan = with_bombs(adapt(from_linen(Net()))), batch_plan(1, steps=steps)
    return simulate(
        make(local_training(model, optax.sgd(1.0), plan)),
        rows(),
        cohort_size=CLIENTS,
        uplink=up or codecs.none(),
        downlink=down or codecs.none(),
        executor=executor or loop(),
    )


def call(sim, state, count=1, bombs=(), without=()):
    """(state, lines) of the next rounds with these `(client, bomb)`, and with no rows for the clients in `without`."""
    begun, column = sim.begin(state, count), np.zeros(CLIENTS, np.float32)
    for client, bomb in bombs:
        column[client] = bomb
    where = begun.share.rows
    sizes = np.where(np.isin(begun.share.ids, list(without)), 0, where.sizes)
    share = begun.share._replace(rows=where._replace(sizes=sizes))
    columns = {**sim.columns, "bomb": sim.columns["bomb"] * 0 + column}
    (carried, outcomes), new = sim.programs.compiled((columns, begun.carried, begun.settings), share)
    state, lines = sim.finish(state, begun.plan, carried, outcomes, new)
    assert_finite(state)
    assert len(lines) == count
    return state, lines


def one_round(sim, state, bombs=(), without=()):
    """(state, line) of the next round."""
    state, (line,) = call(sim, state, 1, bombs, without)
    return state, line


def assert_finite(state):
    """All that a run carries; a threshold may be infinite by its setting."""
    server = state.server._replace(threshold=0.0) if hasattr(state.server, "threshold") else state.server
    for leaf in jax.tree.leaves((server, state.down_states, state.clients.arrays())):
        assert np.isfinite(np.asarray(leaf, np.float64)).all()


def same(got, want, exactly=False):
    check = np.testing.assert_array_equal if exactly else functools.partial(np.testing.assert_allclose, **FLOAT32)
    jax.tree.map(check, got, want)


def assert_left_out(sim, magnitudes=MAGNITUDES, exactly=True):
    """One guilty client of several, at first and again; then all of them, which changes nothing (`exactly` so)."""
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
    _, line = one_round(sim, state)
    assert line["excluded"] == 0 and line["clients"] == CLIENTS and "excluded_clients" not in line
    before = sim.variables(state)
    if state.round == 1:  # a lie within the bounds is used, and still nothing is without a float32
        lied, _ = one_round(sim, start, [(GUILTY, 1e14)])
        one_round(sim, lied, [(GUILTY, -1e14)])
    state, line = one_round(sim, state, [(client, 1e30) for client in range(CLIENTS)])
    assert line["excluded_clients"] == list(range(CLIENTS))
    same(sim.variables(state), before, exactly)


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


QUICK = {
    "fedavg",
    "fedopt",
    "scaffold",
    "fedcode",
    "fedlora residual",
    "hetlora",
    "nested",
    "linear",
    "fda_opt",
    "both",
}
"""What goes through different code; the rest is in the slow tests, since each compiles a round of its own."""


def each(table):
    """The names of a table as parameters."""
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in table]


@pytest.mark.parametrize("name", each(ALGORITHMS))
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


@pytest.mark.parametrize("name", each(AGGREGATORS))
def test_a_huge_client_is_left_out_of_every_aggregator(name):
    assert_left_out(simulation(functools.partial(fedavg, aggregate=AGGREGATORS[name])))


def test_no_aggregator_is_forgotten():
    assert set(AGGREGATORS) - {"nested"} == set(component_names("fedjax8.algorithms.aggregators"))


FDA = {
    "linear": {"theta": 0.05, "monitor": monitors.linear()},
    "sketch": {"theta": 0.05, "monitor": monitors.sketch(2, 10)},
    "naive": {"theta": 0.05, "monitor": monitors.naive()},
    "gm": {"theta": 0.05, "monitor": monitors.gm()},
    "exact": {"theta": 0.05, "monitor": monitors.exact()},
    "synchronous": {"theta": 0.0},
    "never": {"theta": np.inf},
    "periodic": {"theta": 1.0, "monitor": monitors.periodic(3)},
    "examples": {"theta": 0.05, "weighting": "examples", "optimizer_state": "average", "measure_variance": True},
    "drift": {"theta": 0.05, "weighting": "drift", "optimizer_state": "reset"},
    "per layer": {"theta": 0.05, "per_layer": True, "check_every": 2},
}


@pytest.mark.parametrize("name", each(FDA))
def test_a_huge_worker_of_fda_takes_its_step_back_and_is_named(name):
    """The mean of equal models may be off by a rounding, so a round that changes nothing is not compared by bits."""
    assert_left_out(simulation(functools.partial(fda, **FDA[name]), steps=2), exactly=False)


FDA_OPT = {
    "fda_opt": {"max_units": 2, "monitor": monitors.naive(), "first_threshold": 1.0},
    "fda_opt sketch": {"max_units": 3, "monitor": monitors.sketch(2, 10)},
    "fda_opt gm": {"max_units": 2, "monitor": monitors.gm(), "threshold": "fixed", "first_threshold": 1.0},
}


@pytest.mark.parametrize("name", each(FDA_OPT))
def test_a_huge_client_of_fda_opt_is_left_out(name):
    assert_left_out(simulation(functools.partial(fda_opt, **FDA_OPT[name])))


def test_no_monitor_is_forgotten():
    assert set(component_names("fedjax8.algorithms.monitors")) <= set(FDA)


def in_8_bits():
    return codecs.fp8(clip="max", min_ndim=0)


CODECS = {
    "both": lambda: (codecs.error_feedback(codecs.topk(0.3)), codecs.delta(in_8_bits())),
    "delta": lambda: (codecs.delta(in_8_bits()), codecs.none()),
    "fp8": lambda: (codecs.fp8(), codecs.fp8()),
    "feedback": lambda: (
        codecs.error_feedback(codecs.fp8(rounding="nearest")),
        codecs.error_feedback(codecs.topk(0.5)),
    ),
    "powersgd": lambda: (codecs.error_feedback(codecs.powersgd(1, min_rate=1.0)), codecs.none()),
}


@pytest.mark.parametrize("name", each(CODECS))
def test_what_codecs_remember_stays_finite_on_both_sides(name):
    up, down = CODECS[name]()
    assert_left_out(
        simulation(functools.partial(fedavg, payload="update"), up=up, down=down), exactly="delta" not in name
    )


def test_on_several_devices_and_in_one_call_all_decide_alike():
    bombs = [(GUILTY, -1e30)]
    one, two = simulation(fedavg), simulation(fedavg, executor=pmap(1, 2))
    single = one.init()
    for _ in range(2):
        single, line = one_round(one, single, bombs)
        assert line["excluded_clients"] == [GUILTY]
    for sim, exactly in ((one, True), (two, False)):
        state, lines = call(sim, sim.init(), 2, bombs)
        assert [line["excluded_clients"] for line in lines] == [[GUILTY]] * 2
        same(state.server, single.server, exactly)


def test_under_dp_a_huge_client_moves_the_model_by_the_clip_at_most_and_nobody_learns_of_it():
    """Of 1 / m of the clip, m the clients; what is not finite counts as zeros."""
    sim = simulation(functools.partial(dp_fedavg, clip=1.0, noise_multiplier=0.0))
    start = sim.init()
    honest, _ = one_round(sim, start, without=[GUILTY])
    for bomb in MAGNITUDES:
        state, line = one_round(sim, start, [(GUILTY, bomb)])
        assert (line["excluded"], line["clients"]) == (0, CLIENTS)
        moved = trees.subtract(state.server.variables.params, honest.server.variables.params)
        assert float(trees.norm(moved)) <= 1.0 / CLIENTS * (1 + 1e-5)
        if not np.isfinite(bomb):
            assert line["unusable_updates"] == 1
            same(state.server, honest.server)


def test_losses_whose_sum_has_no_float32_are_logged_as_a_number_and_their_clients_are_used():
    """The loss of two clients is 3e38, which none of their gradients knows of."""
    model = from_linen(Net())
    huge = lambda outputs, batch: model.loss(outputs, batch) + 3e38 * (batch["x"][:, 0] > 0)
    sim = simulation(fedavg, adapt=lambda _: model._replace(loss=huge))
    assert np.sum(rows().columns["x"][:, 0] > 0) >= 2
    _, line = one_round(sim, sim.init())
    assert (line["clients"], line["excluded"]) == (CLIENTS, 0)
    assert 1e29 < line["train_loss"] < np.inf


def test_a_step_of_the_server_without_finite_numbers_is_taken_back_as_a_whole():
    make = functools.partial(scaffold, learning_rate=1.0, server_learning_rate=1e38)
    sim = simulation(make, down=codecs.delta(codecs.none()))
    start = sim.init()
    state, lines = call(sim, start, 2)
    assert [line["rejected"] for line in lines] == [1, 1]
    assert [line["clients"] for line in lines] == [CLIENTS] * 2
    carried = lambda state: (state.server, state.down_states, state.clients.arrays())
    same(carried(state), carried(start), exactly=True)
    assert lines[1]["uplink_bytes"] == 2 * lines[0]["uplink_bytes"] > 0  # what was sent was sent


ATTACKS = {
    "sign_flip": sign_flip(scale=1e30, count=1),
    "gaussian": gaussian(deviation=1e30, count=1),
    "inner_product": inner_product(scale=1.0, count=1),
    "little_is_enough": little_is_enough(z=1.0, count=1),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.slow
def test_attackers_are_left_out_too_and_do_not_learn_from_a_huge_client(name):
    attack = ATTACKS[name]
    sim = simulation(lambda local: attacked(fedavg(local), attack))
    start, bad = sim.init(), [] if attack.collude else [0]
    honest, _ = one_round(sim, start, without=[GUILTY])
    for bomb in MAGNITUDES:
        state, line = one_round(sim, start, [(GUILTY, bomb)])
        assert line["excluded_clients"] == [*bad, GUILTY]
        same(state.server, honest.server)


@pytest.mark.slow
def test_a_huge_client_among_dropouts():
    sim = simulation(lambda local: with_dropout(fedavg(local), random(0.4)))
    state = sim.init()
    for _ in range(4):
        state, line = one_round(sim, state, [(GUILTY, 1e30)])
        assert line.get("excluded_clients", []) in ([], [GUILTY])
        assert line["clients"] + line["excluded"] + line["dropped"] == CLIENTS
