"""Stages: who takes part when, by the rule and by given lengths, what a round takes, and a run that goes on."""

import json

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.exchange.ledger import Ledger
from fedjax8.participation import Ask, stages, uniform
from fedjax8.systems import Speeds, SystemModel

SECONDS = np.array([8.0, 1.0, 4.0, 2.0])


def ask(memory=None, round_number=0, cohort_size=4):
    of = lambda ids: SECONDS[ids]
    return Ask(0, round_number, 4, cohort_size, lambda ids: ids + 1, lambda sizes: sizes, of, of, memory=memory or {})


def run(moves, first=1, rounds=3):
    """Clients of each round where rounds change the model by these squared norms."""
    made, memory, seen = stages(first, rounds), {}, []
    for moved in moves:
        seen.append(made.draw(ask(memory)).ids.tolist())
        memory = json.loads(json.dumps(made.remember(memory, {"clients": len(seen[-1]), "squared_update": moved})))
    return seen


def test_stages_end_at_the_scale_over_their_number_of_clients():
    """g = 1 after three rounds; two clients until 1/2, four until the end: clients in the order of their seconds."""
    found = run([9.0, 4.0, 1.0, 0.9, 0.6, 0.5, 0.4, 0.1])
    assert found == [[1]] * 3 + [[1, 3]] * 3 + [[0, 1, 2, 3]] * 2


def test_rounds_without_a_usable_update_count_for_nothing():
    made = stages(1, 1)
    for line in ({"clients": 0, "squared_update": 0.0}, {"clients": 1, "squared_update": 0.0, "rejected": 1}):
        assert made.remember({"clients": 2, "scale": 1.0}, line) == {"clients": 2, "scale": 1.0}


def test_given_lengths_need_no_state():
    made = stages(1, lengths=(2, 3))
    assert not made.reads_state
    assert [len(made.draw(ask(round_number=r)).ids) for r in range(8)] == [1, 1, 2, 2, 2, 4, 4, 4]
    assert [len(stages(1, lengths=(1, 1)).draw(ask(None, r, 3)).ids) for r in range(4)] == [1, 2, 3, 3]


def by_speed(seed, number, ids):
    return Speeds(SECONDS[ids], *[np.full(len(ids), 1e9)] * 2, 0.0 * ids)


def build(toys, participation, cohort_size=4):
    from fedjax8.algorithms.fedavg import fedavg

    data = toys.clients([1.0] * 4, [1.0, 2.0, 3.0, 4.0])
    return toys.build(
        fedavg, data, steps=1, cohort_size=cohort_size, participation=participation, system=SystemModel(by_speed)
    )


def test_speeds_of_1_2_4_8_give_rounds_of_1_2_and_8_seconds(toys):
    sim = build(toys, stages(1, lengths=(2, 2)))
    _, lines = sim.run_rounds(sim.init(), 6)
    assert [line["cohort"] for line in lines] == [1, 1, 2, 2, 4, 4]
    seconds = np.diff([0.0] + [line["simulated_seconds"] for line in lines])
    np.testing.assert_allclose(seconds, [1, 1, 2, 2, 8, 8], rtol=1e-6)


def by_hand(rounds):
    """(clients, squared change) of each round, one step of 0.1 toward the mean of b of the fastest."""
    b, x, n, scale, found = np.array([1.0, 2.0, 3.0, 4.0]), 0.0, 1, None, []
    for r in range(rounds):
        move = 0.1 * (b[np.argsort(SECONDS)[:n]].mean() - x)
        x, found = x + move, [*found, (n, move**2)]
        if scale is None:
            n, scale = (2, move**2) if r + 1 == 3 else (n, None)
        elif move**2 <= scale / n:
            n *= 2
    return [(min(n, 4), moved) for n, moved in found]


def test_a_run_goes_through_the_stages_by_its_own_updates(toys):
    sim, state, lines = build(toys, stages(1, 3)), None, []
    state = sim.init()
    for _ in range(14):
        state, line = sim.run_round(state)
        lines.append(line)
    expected = by_hand(14)
    assert [line["cohort"] for line in lines] == [n for n, _ in expected] and expected[-1][0] == 4
    np.testing.assert_allclose([line["squared_update"] for line in lines], [m for _, m in expected], rtol=1e-3)


def test_a_run_that_goes_on_from_a_checkpoint_is_in_the_same_stage(toys):
    sim = build(toys, stages(1, 3))
    states = [sim.init()]
    for _ in range(8):
        states.append(sim.run_round(states[-1])[0])
    again = build(toys, stages(1, 3))
    kept = json.loads(json.dumps(states[5].ledger.to_json()))
    state = again.place(states[5]._replace(ledger=Ledger.from_json(kept)))
    for _ in range(3):
        state, _ = again.run_round(state)
    assert again.variables(state).params["x"] == sim.variables(states[8]).params["x"]
    assert state.ledger == states[8].ledger


def test_with_all_clients_from_the_start_it_is_the_algorithm_alone(toys):
    ways = [build(toys, participation) for participation in (stages(4), uniform())]
    xs = [toys.trajectory(sim, 3) for sim in ways]
    assert xs[0] == xs[1]


def test_a_first_stage_larger_than_the_last_is_refused(toys):
    with pytest.raises(UserError, match="lower first"):
        build(toys, stages(3), cohort_size=2)
    with pytest.raises(ValueError, match="at least 1"):
        stages(0)
