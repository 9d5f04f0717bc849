"""Clients that are there, by hand: who is asked, how long the server waits, and what is refused."""

import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.errors import UserError
from fedjax8.exchange.ledger import Ledger
from fedjax8.participation import available, uniform
from fedjax8.systems import Speeds, SystemModel, same


def turns(begin=0.0, each=100.0):
    """From `begin` on clients 0 to 2 are there for `each` seconds, then 3 to 5, and so on; a round takes 40 s."""

    def speeds(seed, number, ids):
        ones = np.ones(len(ids))
        return Speeds(38.0 * ones, 4.0 * ones, 4.0 * ones, 0.0 * ones)

    def there(seconds, ids):
        return (seconds >= begin) & ((ids >= 3) == (seconds // each % 2 == 1))

    return SystemModel(speeds, available=there)


def build(toys, system, made=None, cohort_size=2):
    data = toys.clients([1.0] * 6, [1.0] * 6)
    made = available() if made is None else made
    return toys.build(fedavg, data, steps=1, cohort_size=cohort_size, participation=made, system=system)


def test_those_are_asked_who_are_there_when_a_round_begins(toys):
    """Rounds begin at 0, 40, .. 200 s; a float message down and up at 4 B/s is a second each way."""
    sim = build(toys, turns())
    state, asked = sim.init(), []
    for _ in range(6):
        present = sim._present(state)
        asked.append(sim.participants.drawn(state.round, present).ids)
        state, line = sim.run_round(state)
        assert line["simulated_seconds"] == pytest.approx(40.0 * state.round, rel=1e-6) and line["clients"] == 2
    first = [set(ids.tolist()) <= {0, 1, 2} for ids in asked]
    assert first == [True, True, True, False, False, True]
    assert len({tuple(ids.tolist()) for ids in asked}) > 2


def test_fewer_take_part_where_fewer_are_there_and_a_server_waits_for_the_least(toys):
    """Nobody is there before 150 s, so that the first round begins at the third look, 180 s, with the second half."""
    sim = build(toys, turns(150.0), cohort_size=5)
    _, line = sim.run_round(sim.init())
    assert line["simulated_seconds"] == pytest.approx(220.0, rel=1e-6)
    assert (line["clients"], line["cohort"]) == (3, 3)
    needs_four = build(toys, turns(), available(4), cohort_size=5)
    with pytest.raises(UserError, match="4 clients are available; see the intervals"):
        needs_four.run_round(needs_four.init())


def test_a_resumed_run_goes_on_from_the_time_of_its_ledger(toys):
    sim = build(toys, turns(30.0, 70.0))
    state, lines = sim.init(), []
    for _ in range(5):
        state, line = sim.run_round(state)
        lines.append(line)
    half, again = sim.init(), build(toys, turns(30.0, 70.0))
    for _ in range(2):
        half, _ = sim.run_round(half)
    half, rest = half._replace(ledger=Ledger.from_json(half.ledger.to_json())), []
    for _ in range(3):
        half, line = again.run_round(half)
        rest.append(line)
    assert rest == lines[2:]


def test_what_has_no_meaning_is_refused(toys):
    with pytest.raises(UserError, match="no system model of this run says so"):
        build(toys, same())
    with pytest.raises(UserError, match="name=available, buffered or asynchronous"):
        build(toys, turns(), uniform())
    with pytest.raises(UserError, match="least is 3, but cohort_size is 2"):
        build(toys, turns(), available(3))
    with pytest.raises(ValueError, match="at least 1; got 0"):
        available(0)
