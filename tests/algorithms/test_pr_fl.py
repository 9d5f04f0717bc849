"""PR-FL: its average against loops over coordinates, nested blocks byte by byte, and densities by its rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import codecs
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.pr_fl import pr_fl, pruned
from fedjax8.errors import UserError
from fedjax8.executors.vmap import vmap
from fedjax8.systems import Speeds, SystemModel
from fedjax8.types import Model, Variables

START = np.float32([[1.0, -9.0, 3.0, 0.5, 7.0], [-2.0, 8.0, 0.1, -6.0, 4.0]])
RATE = 0.1


def layer() -> Model:
    """A kernel of ten values and a bias; the loss is a/2 times the squared distance of every value from b."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        kernel, bias = variables.params["kernel"], variables.params["bias"]
        distance = lambda b: jnp.sum((kernel - b) ** 2) + jnp.sum((bias - b) ** 2)
        return jax.vmap(distance)(batch["b"]), variables.state

    return Model(
        init=lambda key, batch: Variables({"kernel": jnp.asarray(START), "bias": jnp.zeros(5)}, {}),
        apply=apply,
        loss=lambda y, batch: 0.5 * batch["a"] * y,
        metrics=lambda y, batch: {},
    )


def build(toys, a, b, rows=None, system=None, uplink=None, **settings):
    make, data = functools.partial(pr_fl, **settings), toys.clients(a, b, rows)
    return toys.build(make, data, model=layer(), epochs=1, system=system, executor=vmap(), uplink=uplink)


def counts(state, direction):
    """Messages of each block."""
    sent = state.ledger.sent
    return [
        n
        for c, n in sorted(sent.items(), key=lambda x: int(x[0].part.rpartition(":")[2] or -1))
        if c.part and c.direction == direction
    ]


def densities(sim, state):
    return np.asarray(state.clients.read(np.arange(sim.num_clients))["algorithm"].density)


def test_with_whole_models_it_is_weighted_fedavg(toys):
    data = toys.clients([1.0, 2.0], [1.0, -1.0], [1, 3])
    both = [
        toys.build(make, data, model=layer(), epochs=1)
        for make in (functools.partial(pr_fl, densities=(1.0,), blocks=3), functools.partial(fedavg, payload="update"))
    ]
    states = [sim.run_rounds(sim.init(), 4)[0] for sim in both]
    for got, want in zip(
        *(jax.tree.leaves(sim.variables(x).params) for sim, x in zip(both, states, strict=True)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_coordinates_are_averaged_over_those_who_have_them_and_stay_where_nobody_does(toys):
    """Densities 0.6 and 0.3 of ten coordinates by magnitude: the four smallest stay, three have one owner."""
    a, b, n = [1.0, 2.0], [5.0, -5.0], [1, 3]
    sim = build(toys, a, b, n, densities=(0.6, 0.3))
    state, line = sim.run_round(sim.init())
    flat = START.reshape(-1)
    ranked = np.argsort(-np.abs(flat))
    masks = [set(ranked[:6].tolist()), set(ranked[:3].tolist())]
    expected = flat.copy()
    for coordinate in range(10):
        total = weight = 0.0
        for client in range(2):
            if coordinate in masks[client]:
                y = flat[coordinate]
                for _ in range(n[client]):
                    y -= RATE * a[client] * (y - b[client])
                total, weight = total + n[client] * y, weight + n[client]
        if weight:
            expected[coordinate] = total / weight
    np.testing.assert_allclose(np.ravel(sim.variables(state).params["kernel"]), expected, rtol=1e-5)
    assert line["density"] == pytest.approx(9 / 20)


def test_blocks_are_nested_and_add_up_to_the_model_byte_for_byte(toys):
    sim = build(toys, [1.0] * 3, [1.0] * 3, densities=(1.0, 0.6, 0.3))
    state, line = sim.run_round(sim.init())
    nested = [3, 3, 3, 2, 2, 2, 1, 1, 1, 1]
    assert counts(state, "down") == counts(state, "up") == nested
    rest, bits, order = 5 * 4, 2, 10
    assert line["uplink_bytes"] == 3 * (rest + bits) + 4 * sum(nested)
    assert line["downlink_bytes"] == 3 * (rest + bits + order) + 4 * sum(nested)
    kinds = [c for c in state.ledger.sent if c.direction == "down" and c.part]
    assert sum(c.message_bytes for c in kinds) == START.nbytes


def test_the_order_travels_once_an_interval_and_follows_the_changes(toys):
    """b = 1 moves the coordinates in proportion to their distance from 1; those of the largest squares come first."""
    sim = build(toys, [1.0] * 2, [1.0] * 2, densities=(1.0, 0.2), interval=2)
    state, _ = sim.run_rounds(sim.init(), 2)
    assert state.ledger.num_bytes("down", "order") == 2 * 10
    state, _ = sim.run_rounds(state, 1)
    assert state.ledger.num_bytes("down", "order") == 4 * 10
    first = np.sort(np.argsort(-np.abs(START.reshape(-1) - 1.0))[:1])
    assert np.asarray(state.server.memory.order)[:1].tolist() == first.tolist()


def test_densities_follow_the_rule():
    assert float(pruned(1.0, 2.0, 1.0, 0.1)) == pytest.approx(0.55)  # r = 0.5
    assert float(pruned(0.7, 1.0, 0.96, 0.1)) == pytest.approx(0.7)  # r = 0.04
    assert float(pruned(0.2, 10.0, 1.0, 0.15)) == pytest.approx(0.15)  # r = 0.9
    assert float(pruned(0.4, 1.0, 1.5, 0.1)) == pytest.approx(0.4 * 1.45)  # r = -0.5
    assert float(pruned(0.4, 0.0, 1.5, 0.1)) == pytest.approx(0.4)


def test_slow_clients_are_pruned_by_their_seconds_and_recover(toys):
    """1 and 3 s a round, 2 in the mean: r = 1/3 takes 1 to 0.7, which recovers by 0.2 an interval. Pruned, a step takes
    the share of its 5 + 7 of 15 parameters."""
    speeds = lambda seed, number, ids: Speeds(np.float64([1.0, 3.0])[ids], *[np.full(len(ids), 1e9)] * 2, 0.0 * ids)
    sim = build(toys, [1.0] * 2, [1.0] * 2, system=SystemModel(speeds), densities=(1.0,), interval=2, pruning=1)
    state, seen, seconds = sim.init(), [], []
    for _ in range(7):
        state, line = sim.run_round(state)
        seen.append(densities(sim, state)[1])
        seconds.append(line["simulated_seconds"])
        assert densities(sim, state)[0] == 1.0
    np.testing.assert_allclose(seen, [1.0, 1.0, 0.7, 0.7, 0.9, 0.9, 1.0], rtol=1e-5)
    np.testing.assert_allclose(np.diff(seconds)[[0, 1, 3]], [3.0, 3.0 * 12 / 15, 3.0 * 14 / 15], rtol=1e-4)


def test_blocks_are_quantized_as_kernels_are(toys):
    sim = build(toys, [1.0], [1.0], densities=(1.0,), blocks=2, uplink=codecs.fp8())
    assert sim.run_round(sim.init())[1]["uplink_bytes"] == 5 * 4 + 1 + 2 * (5 + 4)


def test_what_cannot_be_pruned_is_refused(toys):
    with pytest.raises(UserError, match="prunes kernels"):
        sim = toys.build(pr_fl, toys.q2(), epochs=1)
        sim.init()
    with pytest.raises(UserError, match="no clock"):
        build(toys, [1.0], [1.0], pruning=1)
    with pytest.raises(ValueError, match="densities"):
        build(toys, [1.0], [1.0], densities=(0.0,))
