"""Workers on a graph: mixing against matrices by NumPy, FedAvg on the complete graph, bytes by edge, time, losses."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import codecs, dropouts, executors, topologies
from fedjax8.algorithms.dfedavg import dfedavg
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.attacks import attacked, sign_flip
from fedjax8.build import build as build_run
from fedjax8.codecs import wire
from fedjax8.config import base_config, component
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.introduction import introduction
from fedjax8.local import local_training, scheduled
from fedjax8.lookup import component_names
from fedjax8.systems import ServerLink, Speeds, SystemModel, same
from fedjax8.topologies import matrix
from fedjax8.types import Model, Variables

N = 6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0], [4.0, -2.0], [7.0], [1.0, 1.0, 2.0])
MEANS = np.array([np.mean(rows) for rows in ROWS])
FLOAT32 = 2e-6
ONCE = functools.partial(scheduled, schedule=lambda number: jnp.where(number == 0, 1.0, 0.0))
"""Training in the first round alone."""


def build(toys, topology, make=dfedavg, around=lambda algorithm: algorithm, **more):
    return toys.build(
        lambda local: around(make(local, topology)), toys.with_rows(ROWS), **{"epochs": 2, "batch_size": 3} | more
    )


def own(state):
    """The workers' numbers."""
    return np.asarray(state.clients.arrays()["algorithm"].variables.params["x"])


def trained(x, means, rate):
    for _ in range(2):
        x = x - rate * (x - means)
    return x


@pytest.mark.parametrize("executor", [executors.loop(), executors.pmap(1, 4)], ids=["loop", "pmap"])
@pytest.mark.parametrize(
    "topology",
    [topologies.ring(), topologies.complete(), topologies.matching(), topologies.exponential(True), topologies.star(2)],
    ids=["ring", "complete", "matching", "one_peer", "star"],
)
def test_rounds_are_local_training_and_a_product_with_the_matrix(toys, topology, executor):
    sim = build(toys, topology, executor=executor)
    state, x = sim.init(), np.zeros(N)
    for number in range(3):
        x = matrix(topology.graph(number, N)) @ trained(x, MEANS, toys.LEARNING_RATE)
        state, line = sim.run_round(state)
        np.testing.assert_allclose(own(state), x, atol=FLOAT32)
        assert float(sim.variables(state).params["x"]) == pytest.approx(x.mean(), abs=FLOAT32)
        assert line["consensus_distance"] == pytest.approx(x.std(), abs=FLOAT32)
    assert (line["uplink_bytes"], line["downlink_bytes"], line["clients"]) == (0, 0, N)


STATELESS = [
    (name, settings)
    for name in ("none", "cast", "fp8", "uniform", "terngrad", "drive", "rotated", "sign")
    if name in component_names("fedjax8.codecs")
    for settings in importlib.import_module(f"fedjax8.codecs.{name}").EXAMPLES[:1]
]


@functools.cache
def linear():
    """(model, rows) of a linear regression with a matrix of 6 by 5."""
    random = np.random.default_rng(0)
    columns = {"x": np.float32(random.normal(size=(18, 6))), "y": np.float32(random.normal(size=(18, 5)))}
    start = np.float32(random.normal(size=(6, 5)))
    model = Model(
        init=lambda key, batch: Variables({"w": jnp.asarray(start)}, {}),
        apply=lambda v, batch, **_: (batch["x"] @ v.params["w"], v.state),
        loss=lambda out, batch: 0.5 * jnp.sum((out - batch["y"]) ** 2, axis=-1),
        metrics=lambda out, batch: {},
    )
    return model, FederatedData.from_owners(columns, np.repeat(np.arange(N), 3), N)


def on_linear(make, codec, **more):
    model, data = linear()
    local = local_training(model, optax.sgd(0.05), batch_plan(2, epochs=1))
    usual = {"cohort_size": N, "uplink": codec, "downlink": codecs.none(), "executor": executors.loop()}
    return simulate(make(local), data, **{**usual, **more})


@pytest.mark.parametrize(("name", "settings"), STATELESS)
def test_the_complete_graph_is_fedavg_with_equal_weights(name, settings):
    """Same keys, same encodings; sums in another order."""
    codec = getattr(codecs, name)(**settings)
    star = on_linear(lambda local: fedavg(local, weighting="uniform"), codec)
    graph = on_linear(lambda local: dfedavg(local, topologies.complete()), codec)
    a, b = star.init(), graph.init()
    for _ in range(3):
        (a, _), (b, line) = star.run_round(a), graph.run_round(b)
    want = np.asarray(star.variables(a).params["w"])
    np.testing.assert_allclose(np.asarray(graph.variables(b).params["w"]), want, rtol=2e-5, atol=2e-6)
    assert line["consensus_distance"] < 1e-5


def test_a_ring_of_four_shrinks_disagreement_to_a_third(toys):
    sim = toys.build(lambda local: dfedavg(ONCE(local), topologies.ring()), toys.with_rows(ROWS[:4]), epochs=1)
    state, line = sim.run_round(sim.init())
    for _ in range(4):
        before = line["consensus_distance"]
        state, line = sim.run_round(state)
        assert line["consensus_distance"] / before == pytest.approx(1 / 3, rel=1e-4)


@pytest.mark.parametrize("topology", [topologies.ring(), topologies.torus(), topologies.exponential()])
def test_mixing_keeps_the_mean_of_what_was_sent(toys, topology):
    sim = build(toys, topology, make=lambda local, topology: dfedavg(ONCE(local), topology))
    state, _ = sim.run_round(sim.init())
    mean = own(state).astype(np.float64).mean()
    for _ in range(10):
        state, _ = sim.run_round(state)
    assert own(state).astype(np.float64).mean() == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("topology", [topologies.ring(), topologies.star(), topologies.exponential()])
def test_bytes_are_edges_times_the_serialized_message(topology):
    codec = codecs.fp8()
    sim = on_linear(lambda local: dfedavg(local, topology), codec)
    state, _ = sim.run_rounds(sim.init(), 4)
    (channel,) = state.ledger.sent
    tree = {"params": sim.variables(state).params, "state": {}}
    message, _ = codec.encode(jax.random.key(0), codec.init(tree), tree)
    whole = matrix(topology.graph(0, N))
    edges = np.count_nonzero(whole) - np.count_nonzero(np.diag(whole))
    assert channel.message_bytes == len(wire.pack(message)) - wire.HEADER_BYTES
    assert (channel.direction, state.ledger.sent[channel]) == ("peer", 4 * edges)


def test_a_worker_that_drops_out_keeps_its_model_and_its_weight_goes_to_those_who_would_hear_it(toys):
    lost = np.array([False, True, False, False, True, False])
    dropout = dropouts.Dropout(lambda key, ids: jnp.asarray(lost)[ids])
    sim = build(toys, topologies.ring(), around=lambda algorithm: dropouts.with_dropout(algorithm, dropout))
    state, line = sim.run_round(sim.init())
    y = trained(np.zeros(N), MEANS, toys.LEARNING_RATE)
    whole = matrix(topologies.ring().graph(0, N))
    heard = np.where(lost, 0.0, whole)
    heard[np.arange(N), np.arange(N)] += np.where(lost, whole, 0.0).sum(axis=1) - np.diag(np.where(lost, whole, 0.0))
    want = np.where(lost, 0.0, heard @ y)
    np.testing.assert_allclose(own(state), want, atol=FLOAT32)
    assert (line["dropped"], line["clients"]) == (2, 4) and sum(state.ledger.sent.values()) == 2 * 4


def test_a_worker_with_nan_is_not_heard_and_named(toys):
    rows = [list(r) for r in ROWS]
    rows[3] = [float("inf")]
    sim = toys.build(lambda local: dfedavg(local, topologies.complete()), toys.with_rows(rows), epochs=1)
    state, line = sim.run_round(sim.init())
    assert line["excluded_clients"] == [3] and line["excluded"] == 1 and own(state)[3] == 0
    assert np.all(np.isfinite(own(state))) and np.all(np.delete(own(state), 3) != 0)


def test_time_of_a_round_is_that_of_its_slowest_edge(toys):
    """A path 0 - 1 - 2, four bytes: out degrees 1, 2, 1; up at 4, 8, 1 B/s, down at 4, 4, 8 B/s, latencies 0, 1/4, 1/2.

    Worker 0 hears 1 at min(8/2, 4/1): 2 + 1/4 + 0 + 1. Worker 1 hears 0 at min(4/1, 4/2) and 2 at min(1/1, 4/2):
    max(1 + 1/4 + 2, 3 + 1/2 + 1/4 + 4). Worker 2 hears 1 at min(8/2, 8/1): 2 + 1/4 + 1/2 + 1.
    """
    of = Speeds(*(np.array(x) for x in ([1.0, 2.0, 3.0], [4.0, 4.0, 8.0], [4.0, 8.0, 1.0], [0.0, 0.25, 0.5])))
    system = SystemModel(lambda seed, number, ids: Speeds(*(x[ids] for x in of)))
    sim = toys.build(
        lambda local: dfedavg(local, topologies.star(1)), toys.with_rows([[1.0], [2.0], [3.0]]), steps=1, system=system
    )
    _, line = sim.run_round(sim.init())
    assert line["simulated_seconds"] == 7.75 and line["peak_rate"] == 0


def test_what_a_graph_does_not_go_with_is_refused(toys):
    ring = topologies.ring()
    with pytest.raises(UserError, match="set cohort_size to 6; it is 3"):
        build(toys, ring, cohort_size=3)
    with pytest.raises(UserError, match="no server says when they are late"):
        late = lambda algorithm: dropouts.with_dropout(algorithm, dropouts.deadline(1.0))
        build(toys, ring, around=late, system=same())
    with pytest.raises(UserError, match="link of a server changes nothing"):
        build(toys, ring, system=same()._replace(server=ServerLink(1.0, 1.0)))
    with pytest.raises(UserError, match="attacks on messages"):
        build(toys, ring, around=lambda algorithm: attacked(algorithm, sign_flip(0.5)))._traced  # noqa: B018
    with pytest.raises(UserError, match="fill no grid"):
        build(toys, topologies.torus(4))._traced  # noqa: B018


def test_the_heading_of_a_run_names_the_codec_between_workers():
    config = base_config()
    config.algorithm, config.cohort_size = component("dfedavg"), config.num_clients
    made = build_run(config)
    words = introduction(made, made.simulation.init())
    assert "between clients fp8 (uplink)" in words and "down fp8" not in words
