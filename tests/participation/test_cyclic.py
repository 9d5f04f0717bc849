"""Turns: everyone once a cycle, in an order that the seed decides."""

import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.participation import Ask, cyclic


def turn(r, num_clients, cohort_size, seed=0):
    return cyclic().draw(Ask(seed, r, num_clients, cohort_size, None, None, None)).ids


@pytest.mark.parametrize(("clients", "cohort"), [(10, 3), (12, 4), (5, 5), (7, 1), (5, 4)])
def test_everyone_takes_part_once_a_cycle(clients, cohort):
    cycle = -(-clients // cohort)
    rounds = [turn(r, clients, cohort) for r in range(2 * cycle)]
    assert sorted(np.concatenate(rounds[:cycle])) == list(range(clients))
    assert [len(ids) for ids in rounds[: cycle - 1]] == [cohort] * (cycle - 1)
    assert all(np.array_equal(a, b) for a, b in zip(rounds[:cycle], rounds[cycle:], strict=True))


def test_the_order_is_shuffled_by_the_seed():
    """Of 300 seeds each client is in the first of five turns as often as any other: 60, five standard errors."""
    first = np.bincount(np.concatenate([turn(0, 10, 2, seed) for seed in range(300)]), minlength=10)
    assert np.abs(first - 60).max() < 5 * np.sqrt(300 * 0.2 * 0.8)


def test_the_last_turn_of_a_cycle_has_who_is_left(toys):
    b = [1.0, 2.0, 4.0, 8.0, 16.0]
    sim = toys.build(fedavg, toys.clients([1.0] * 5, b), cohort_size=2, steps=1, participation=cyclic())
    state, x, asked = sim.init(), 0.0, 0
    for r in range(6):
        ids = turn(r, 5, 2)
        state, line = sim.run_round(state)
        x, asked = x + 0.1 * (np.mean([b[i] for i in ids]) - x), asked + len(ids)
        assert line["cohort"] == line["clients"] == (1 if r % 3 == 2 else 2)
        assert line["downlink_bytes"] == line["uplink_bytes"] == 4 * asked
    assert float(sim.variables(state).params["x"]) == pytest.approx(x, rel=1e-5)
