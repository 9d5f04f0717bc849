"""Two levels of averaging by NumPy, as FedAvg where they are one, bytes by level, what is lost and refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import codecs, dropouts
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.hierarchical import block_of, hierarchical
from fedjax8.attacks import attacked, sign_flip
from fedjax8.codecs import wire
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.systems import same
from fedjax8.types import StepGradient

FLOAT32 = 4e-6
ROWS = ([0.0, 1.0, 5.0], [2.0, -1.0], [3.0, 4.0, -2.0], [7.0], [1.0, -3.0])
MEANS, SIZES = np.array([np.mean(rows) for rows in ROWS]), np.array([len(rows) for rows in ROWS])


def build(toys, make, **more):
    return toys.build(make, toys.with_rows(ROWS), **{"epochs": 2, "batch_size": 3} | more)


def number(sim, state):
    return float(sim.variables(state).params["x"])


def trained(x, means, rate):
    for _ in range(2):
        x = x - rate * (x - means)
    return x


@pytest.mark.parametrize("executor", [None, pmap(1, 2)], ids=["loop", "pmap"])
@pytest.mark.parametrize("assignment", ["modulo", "blocks"])
def test_rounds_by_numpy(toys, assignment, executor):
    make = functools.partial(hierarchical, groups=2, inner_rounds=3, assignment=assignment)
    sim = build(toys, make, executor=executor)
    of = np.arange(5) % 2 if assignment == "modulo" else np.arange(5) * 2 // 5
    state, x = sim.init(), 0.0
    for _ in range(2):
        z = np.full(2, x)
        for _ in range(3):
            y = trained(z[of], MEANS, toys.LEARNING_RATE)
            z = np.array([np.average(y[of == k], weights=SIZES[of == k]) for k in range(2)])
        x = np.average(z, weights=[SIZES[of == k].sum() for k in range(2)])
        state, line = sim.run_round(state)
        assert number(sim, state) == pytest.approx(x, abs=FLOAT32)
    assert line["clients"] == 5


@pytest.mark.parametrize(("clients", "groups"), [(5, 2), (7, 7), (11, 4), (10, 1)])
def test_blocks_are_consecutive_and_differ_by_one(clients, groups):
    found = np.asarray(block_of(jnp.arange(clients), clients, groups))
    want = np.concatenate([np.full(len(part), k) for k, part in enumerate(np.array_split(np.arange(clients), groups))])
    np.testing.assert_array_equal(found, want)


def test_blocks_of_ten_million_clients_stay_within_int32():
    found = block_of(jnp.int32([0, 9_999_999, 5_000_000]), 10_000_000, 1000)
    np.testing.assert_array_equal(found, [0, 999, 500])


@pytest.mark.parametrize("cohort_size", [5, 3])
@pytest.mark.parametrize("groups", [1, 2, 4, 5])
def test_one_inner_round_is_fedavg(toys, groups, cohort_size):
    """The mean of groups' means with their sizes is the mean, also where a group has no client in the round."""
    ends = []
    for make in (functools.partial(hierarchical, groups=groups, inner_rounds=1), fedavg):
        sim = build(toys, make, cohort_size=cohort_size)
        ends.append(number(sim, sim.run_rounds(sim.init(), 3)[0]))
    assert ends[0] == pytest.approx(ends[1], abs=FLOAT32)


def test_one_group_is_as_many_rounds_of_fedavg(toys):
    two_levels = build(toys, functools.partial(hierarchical, groups=1, inner_rounds=4))
    flat = build(toys, fedavg)
    ends = [number(sim, sim.run_rounds(sim.init(), n)[0]) for sim, n in ((two_levels, 2), (flat, 8))]
    assert ends[0] == pytest.approx(ends[1], abs=FLOAT32)


def test_bytes_are_counted_by_level(toys):
    edge = codecs.fp8(clip="max", min_ndim=0)
    make = functools.partial(hierarchical, groups=3, inner_rounds=4, edge=edge)
    sim = build(toys, make)
    state, line = sim.run_round(sim.init())
    tree = {"params": sim.variables(state).params, "state": {}}
    message, _ = edge.encode(jax.random.key(0), edge.init(tree), tree)
    size = len(wire.pack(message)) - wire.HEADER_BYTES
    assert (line["uplink_bytes"], line["downlink_bytes"]) == (4 * 5 * 4, 4 * 5 * 4)
    assert line["edge_bytes"] == 2 * 3 * size and size < 4 + 4 + 1


def test_codecs_with_a_state_have_one_for_each_edge_server(toys):
    made = build(toys, functools.partial(hierarchical, groups=3))
    down = codecs.delta(codecs.none())
    sim = simulate(made.algorithm, made.data, cohort_size=5, uplink=codecs.none(), downlink=down, executor=loop())
    state, _ = sim.run_round(sim.init())
    (reference,) = jax.tree.leaves(state.down_states["model"])
    assert np.shape(reference) == (3,) and len(np.unique(reference)) == 3


def test_clients_that_drop_out_leave_their_groups_to_the_others(toys):
    """Groups 0, 2, 4 and 1, 3; all of the second drop out, so that it keeps its model and weighs nothing."""
    lost = dropouts.Dropout(lambda key, ids: ids % 2 == 1)
    make = lambda local: dropouts.with_dropout(hierarchical(local, 2, inner_rounds=2), lost)
    sim = build(toys, make)
    state, line = sim.run_round(sim.init())
    z, here = 0.0, np.array([0, 2, 4])
    for _ in range(2):
        z = np.average(trained(z, MEANS[here], toys.LEARNING_RATE), weights=SIZES[here])
    assert number(sim, state) == pytest.approx(z, abs=FLOAT32)
    assert (line["dropped"], line["clients"]) == (2, 3) and line["edge_bytes"] == 4 * (2 + 1)


def test_inner_rounds_take_their_time_one_after_the_other(toys):
    """4 bytes down and up at 4 B/s and two steps of a second: 4 s an inner round, three of them."""
    system = same(1.0, down_bandwidth=4.0, up_bandwidth=4.0)
    sim = build(toys, functools.partial(hierarchical, groups=2, inner_rounds=3), system=system)
    assert sim.run_round(sim.init())[1]["simulated_seconds"] == 12.0


def test_what_cannot_go_together_is_refused(toys):
    with pytest.raises(UserError, match="there are 5 clients; lower it"):
        _ = build(toys, functools.partial(hierarchical, groups=6))._traced
    with pytest.raises(UserError, match="attacks on messages"):
        _ = build(toys, lambda local: attacked(hierarchical(local, 2), sign_flip(0.5)))._traced
    with pytest.raises(UserError, match="accounting of private gradients"):
        _ = build(toys, functools.partial(hierarchical, groups=2), gradient=StepGradient(accounted=True))._traced
    for settings in ({"groups": 0}, {"inner_rounds": 0}, {"assignment": "random"}):
        with pytest.raises(ValueError, match="must be"):
            build(toys, functools.partial(hierarchical, **settings))
