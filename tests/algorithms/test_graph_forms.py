"""dsgd, choco, noloco, dfedalt and dfedsalt on quadratics, by NumPy, and as the algorithms that they contain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import codecs, executors, topologies
from fedjax8.algorithms.choco import choco
from fedjax8.algorithms.dfedalt import dfedalt, sharp
from fedjax8.algorithms.dfedavg import dfedavg
from fedjax8.algorithms.dfedsalt import dfedsalt
from fedjax8.algorithms.dsgd import dsgd
from fedjax8.algorithms.fedrep import fedrep
from fedjax8.algorithms.noloco import noloco
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.paths import split
from fedjax8.topologies import matrix
from fedjax8.types import ClientRows, Graph, Model, Pool, Topology, Variables

N, SIZE = 5, 24
FLOAT32 = 5e-6
RNG = np.random.default_rng(7)
TARGETS = RNG.normal(size=(N, SIZE))
RING = matrix(topologies.ring().graph(0, N))
APART = Topology(lambda number, n: Graph(*(np.zeros((n, 1), np.int32), np.zeros((n, 1), np.float32)), np.ones(n)))
"""Nobody hears anybody."""


def vectors(make, *, rate=0.1, codec=None, executor=None):
    """Workers with f(x) = 1/2 ||x - b||^2, a vector b each, and the simulation of an algorithm on them."""
    model = Model(
        init=lambda key, batch: Variables({"x": jnp.zeros(SIZE)}, {}),
        apply=lambda v, batch, **_: (v.params["x"], v.state),
        loss=lambda x, batch: 0.5 * jnp.sum((x - batch["b"]) ** 2, axis=-1),
        metrics=lambda x, batch: {},
    )
    local = local_training(model, optax.sgd(rate), batch_plan(1, steps=2))
    data = FederatedData.from_owners({"b": np.float32(TARGETS)}, np.arange(N), N)
    usual = {"cohort_size": N, "downlink": codecs.none(), "executor": executor or executors.loop()}
    return simulate(make(local), data, uplink=codec or codecs.none(), **usual)


def own(state):
    return np.asarray(state.clients.arrays()["algorithm"].variables.params["x"], np.float64)


def trained(x, rate=0.1):
    for _ in range(2):
        x = x - rate * (x - TARGETS)
    return x


def largest(x, share):
    """`x` with all but the largest values of each row at zero."""
    kept = np.zeros_like(x)
    for row, values in enumerate(x):
        top = np.argsort(-np.abs(values))[: max(1, round(share * values.size))]
        kept[row, top] = values[top]
    return kept


def test_dsgd_adds_steps_to_the_mean_of_what_was_before_them():
    sim = vectors(lambda local: dsgd(local))
    state, x = sim.init(), np.zeros((N, SIZE))
    for _ in range(4):
        x = RING @ x + trained(x) - x
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(own(state), x, atol=FLOAT32)


@pytest.mark.parametrize("executor", [executors.loop(), executors.pmap(1, 2)], ids=["loop", "pmap"])
def test_choco_is_three_lines_of_numpy(executor):
    share, gamma = 0.25, 0.4
    sim = vectors(lambda local: choco(local, gamma=gamma), codec=codecs.topk(share), executor=executor)
    state, x, replica = sim.init(), np.zeros((N, SIZE)), np.zeros((N, SIZE))
    for _ in range(4):
        y = trained(x)
        replica = replica + largest(y - replica, share)
        x = y + gamma * (RING @ replica - replica)
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(own(state), x, atol=FLOAT32)


@pytest.mark.parametrize(
    ("make", "codec"),
    [(choco, codecs.topk(0.1)), (choco, codecs.fp8(clip="max")), (choco, codecs.sign()), (dsgd, codecs.uniform(2))],
    ids=["topk", "fp8", "sign", "dsgd"],
)
def test_the_mean_moves_by_steps_alone_whatever_the_codec_does(make, codec):
    """The mean of two steps is x + 0.19 (mean b - x), as of one worker that has all rows."""
    sim, mean = vectors(make, codec=codec), np.zeros(SIZE)
    state = sim.init()
    for _ in range(5):
        mean = trained(np.tile(mean, (N, 1))).mean(axis=0)
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(own(state).mean(axis=0), mean, atol=FLOAT32)


def test_choco_with_a_lossless_codec_and_the_whole_step_is_dfedavg():
    whole = functools.partial(choco, gamma=1.0)
    ends = [own(vectors(make).run_rounds(vectors(make).init(), 3)[0]) for make in (whole, dfedavg)]
    np.testing.assert_allclose(ends[0], ends[1], atol=FLOAT32)


def test_choco_agrees_on_the_mean_which_plain_gossip_with_the_same_codec_loses():
    """After one round of training, without steps: the rate is 0 from then on."""
    ends = {}
    for make in (functools.partial(choco, gamma=0.3), dfedavg):
        once = lambda local, make=make: make(
            local._replace(
                train=lambda v, rows, key, **more: local.train(
                    v, rows, key, step_scale=jnp.where(rows.pool.round_number == 0, 1.0, 0.0), **more
                )
            )
        )
        sim = vectors(once, codec=codecs.topk(0.25))
        state, first = sim.run_round(sim.init())
        state, lines = sim.run_rounds(state, 60)
        ends[make] = lines[-1]["consensus_distance"] / first["consensus_distance"]
        mean = own(state).mean(axis=0)
        kept = np.abs(mean - trained(np.zeros((N, SIZE))).mean(axis=0)).max()
        assert (kept < 1e-5) == (make is not dfedavg)
    assert max(ends.values()) < 1e-3


def test_choco_refuses_codecs_that_do_not_contract():
    with pytest.raises(UserError, match=r"config\.uplink: choco sends differences.*contracts"):
        _ = vectors(choco, codec=codecs.count_sketch())._traced
    for settings in ({"gamma": 0.0}, {"gamma": 1.5}, {"gamma": float("nan")}):
        with pytest.raises(ValueError, match="gamma must be"):
            vectors(functools.partial(choco, **settings))


def test_noloco_by_numpy():
    alpha, beta, gamma = 0.5, 0.7, 0.3
    sim = vectors(lambda local: noloco(local, alpha=alpha, beta=beta, gamma=gamma))
    state, theta, momentum = sim.init(), np.zeros((N, SIZE)), np.zeros((N, SIZE))
    for number in range(4):
        pairs = matrix(topologies.matching().graph(number, N))
        change = trained(theta) - theta
        momentum = alpha * momentum + beta * pairs @ change - gamma * (theta - pairs @ theta)
        theta = theta + momentum
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(own(state), theta, atol=FLOAT32)


def test_noloco_without_momentum_is_the_mean_of_pairs():
    plain = functools.partial(noloco, alpha=0.0, beta=1.0, gamma=1.0)
    pairs = functools.partial(dfedavg, topology=topologies.matching())
    ends = [own(vectors(make).run_rounds(vectors(make).init(), 3)[0]) for make in (plain, pairs)]
    np.testing.assert_allclose(ends[0], ends[1], atol=FLOAT32)


ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0])
MEANS = np.array([np.mean(rows) for rows in ROWS])


def in_parts(toys, make, **more):
    return toys.build(make, toys.with_rows(ROWS), model=toys.two_parts(), **{"epochs": 2, "batch_size": 3} | more)


def parts_of(state):
    params = state.clients.arrays()["algorithm"].variables.params
    return np.asarray(params["body"]["x"]), np.asarray(params["head"]["h"])


def test_heads_are_fitted_then_bodies_then_bodies_are_mixed(toys):
    sim = in_parts(toys, lambda local: dfedalt(local, head_epochs=3))
    state, x, h = sim.init(), np.ones(3), np.full(3, -2.0)
    ring = matrix(topologies.ring().graph(0, 3))
    for _ in range(3):
        for _ in range(3):
            h = h - toys.LEARNING_RATE * (x + h - MEANS)
        for _ in range(2):
            x = x - toys.LEARNING_RATE * (x + h - MEANS)
        x = ring @ x
        state, _ = sim.run_round(state)
    np.testing.assert_allclose(parts_of(state), [x, h], atol=FLOAT32)
    (channel,) = state.ledger.sent
    assert channel.message_bytes == 4 and state.ledger.sent[channel] == 3 * 3 * 2  # the body alone, on six edges


def test_on_the_complete_graph_it_is_fedrep_with_equal_weights(toys):
    star = in_parts(toys, lambda local: fedrep(local, head_epochs=2, weighting="uniform"))
    graph = in_parts(toys, lambda local: dfedalt(local, topologies.complete(), head_epochs=2))
    a, b = star.run_rounds(star.init(), 3)[0], graph.run_rounds(graph.init(), 3)[0]
    np.testing.assert_allclose(parts_of(b)[0], float(star.variables(a).params["body"]["x"]), atol=FLOAT32)
    np.testing.assert_allclose(parts_of(b)[1], a.clients.arrays()["algorithm"]["private"]["head"]["h"], atol=FLOAT32)


def test_alone_workers_train_both_parts_by_themselves(toys):
    sim = in_parts(toys, lambda local: dfedalt(local, APART, order="simultaneous"))
    state, x, h = sim.init(), np.ones(3), np.full(3, -2.0)
    for _ in range(3 * 2):
        step = toys.LEARNING_RATE * (x + h - MEANS)
        x, h = x - step, h - step
    state, _ = sim.run_rounds(state, 3)
    np.testing.assert_allclose(parts_of(state), [x, h], atol=FLOAT32)
    assert sum(state.ledger.sent.values()) == 0


def test_one_simultaneous_step_on_the_complete_graph_is_a_step_on_the_joint_gradient(toys):
    make = lambda local: dfedalt(local, topologies.complete(), order="simultaneous")
    sim = in_parts(toys, make, epochs=None, steps=1)
    state, _ = sim.run_round(sim.init())
    joint = np.mean(1 - 2 - MEANS)
    np.testing.assert_allclose(parts_of(state)[0], 1 - toys.LEARNING_RATE * joint, atol=FLOAT32)


@pytest.mark.parametrize("order", ["alternate", "simultaneous"])
def test_rho_0_changes_no_bit(toys, order):
    ends = []
    for make in (functools.partial(dfedalt, order=order), functools.partial(dfedsalt, order=order, rho=0.0)):
        sim = in_parts(toys, make)
        ends.append(parts_of(sim.run_rounds(sim.init(), 3)[0]))
    np.testing.assert_array_equal(ends[0], ends[1])


def test_sharp_gradients_of_a_quadratic_are_those_a_little_further_on():
    """Of 1/2 a u^2 at u, with e = rho sign(u): a (u + rho sign(u)). The private part keeps its own."""
    model = Model(
        init=lambda key, batch: Variables({"body": {"u": jnp.float32(2)}, "head": {"v": jnp.float32(3)}}, {}),
        apply=lambda v, batch, **_: (v.params, v.state),
        loss=lambda p, batch: 0.5 * batch["a"] * (p["body"]["u"] ** 2 + p["head"]["v"] ** 2),
        metrics=lambda out, batch: {},
    )
    local = local_training(model, optax.sgd(0.1), batch_plan(1, steps=1))
    rows = ClientRows(Pool({"a": jnp.float32([5.0])}, None), jnp.int32(0), jnp.int32(1))
    batch = {"a": jnp.float32([5.0]), "mask": jnp.ones(1)}
    for u in (2.0, -0.5, 0.0):
        params = {"body": {"u": jnp.float32(u)}, "head": {"v": jnp.float32(3)}}
        start, key = Variables(params, {}), jax.random.key(0)
        plain = local.gradient(start, rows, batch, key)
        found = sharp(local, split(None), 0.25, start, rows)(plain, params, batch, key)
        assert float(found["body"]["u"]) == pytest.approx(5.0 * (u + 0.25 * np.sign(u)), rel=1e-6)
        assert float(found["head"]["v"]) == 15.0


def test_settings_without_a_meaning_are_refused(toys):
    for make, says in (
        (functools.partial(dfedalt, order="both"), "order must be one of"),
        (functools.partial(dfedalt, order="simultaneous", head_epochs=2), "no meaning"),
        (functools.partial(dfedalt, head_epochs=0), "head_epochs must be"),
        (functools.partial(dfedsalt, rho=-1.0), "rho must be"),
        (functools.partial(noloco, alpha=1.0), "alpha must be"),
    ):
        with pytest.raises(ValueError, match=says):
            in_parts(toys, make)
