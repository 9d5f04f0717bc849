"""A run of FDA that is broken off between synchronizations and goes on from its checkpoint is an unbroken one."""

import functools

import chex
import numpy as np

from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.monitors import linear
from fedjax8.running.checkpoints import open_checkpoints

ROUNDS, BROKEN_AT = 5, 2


def rounds(sim, state, until):
    lines = []
    while state.round < until:
        state, line = sim.run_round(state)
        lines.append(line)
    return state, lines


def same(a, b):
    chex.assert_trees_all_equal(a, b)


def test_fda_goes_on_from_a_checkpoint_bit_for_bit(toys, tmp_path):
    data = toys.clients([1.0, 4.0, 2.0, 0.5], [0.0, 1.0, -1.0, 3.0], [2, 3, 1, 2])
    sim = toys.build(functools.partial(fda, theta=0.2, monitor=linear()), data, steps=4)
    whole, all_lines = rounds(sim, sim.init(), ROUNDS)
    half, lines = rounds(sim, sim.init(), BROKEN_AT)
    with open_checkpoints(tmp_path) as checkpoints:
        checkpoints.save(half, seconds=1.5)
    own = np.asarray(half.clients.arrays()["algorithm"].variables.params["x"])
    assert len(set(own.tolist())) == 4  # every worker is somewhere else: there is something to remember
    with open_checkpoints(tmp_path) as checkpoints:
        found, seconds = checkpoints.restore(sim.init())
    assert (found.round, seconds, found.ledger) == (BROKEN_AT, 1.5, half.ledger)
    resumed, more = rounds(sim, sim.place(found), ROUNDS)
    assert lines + more == all_lines
    assert resumed.ledger == whole.ledger
    same((resumed.server, resumed.down_states), (whole.server, whole.down_states))
    same(resumed.clients.arrays(), whole.clients.arrays())
    before, after = all_lines[BROKEN_AT - 1]["syncs"], all_lines[-1]["syncs"]
    assert 0 < before < after < 4 * ROUNDS  # some steps synchronize and some do not, on both sides of the break
