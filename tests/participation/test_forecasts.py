"""Forecasts of runs in which not every round has the same clients: held against the runs."""

import io

import numpy as np
import pytest
from rich.console import Console

from fedjax8 import participation
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.mime import mime
from fedjax8.exchange.ledger import Ledger
from fedjax8.running.forecast import Range, forecast
from fedjax8.running.forecast_tables import show
from fedjax8.running.schedule import Schedule
from fedjax8.systems import lognormal, same
from fedjax8.types import Channel

ROUNDS = 4
STEPS = [1, 2, 3, 4, 5, 6, 7, 8]


def foretold(toys, drawn_by, make=fedavg, **more):
    """(forecast, simulation, ledger after the run, text)."""
    data = toys.clients([1.0] * 8, [0.0] * 8, STEPS)
    length = {} if "steps" in more else {"epochs": 1}
    sim = toys.build(make, data, cohort_size=3, participation=drawn_by, **length, **more)
    found = forecast(sim, Schedule(ROUNDS, 2, 2), data.columns, measured=False)
    state = sim.init()
    while state.round < ROUNDS:
        state, _ = sim.run_rounds(state, ROUNDS - state.round)
    out = io.StringIO()
    show(found, "what runs", Console(file=out))
    return found, sim, state.ledger, out.getvalue()


@pytest.mark.parametrize(
    ("drawn_by", "asked"), [(participation.power_of_choice(5), 5), (participation.overselect(1.5), 5)]
)
def test_numbers_that_are_fixed_are_those_of_the_run(toys, drawn_by, asked):
    found, sim, ledger, text = foretold(toys, drawn_by)
    assert (found.asked, found.used) == (Range(asked, asked), Range(3, 3))
    assert found.run_messages is not None and dict(found.run_messages.sent) == dict(ledger.sent)
    assert "clients  5 a round, 3 of them waited for" in text
    up, down = ledger.uplink_bytes, ledger.downlink_bytes
    assert f"4 rounds up {up}, down {down}" in text
    assert ("report" in text) == bool(drawn_by.report_bytes)
    assert found.steps.exact == (not drawn_by.reads_state)
    if found.steps.exact:
        drawn = [sim.participants.drawn(number) for number in range(ROUNDS)]
        assert found.steps.run == sum(STEPS[i] for d in drawn for i in d.ids[~d.lost])


def test_what_only_those_receive_who_are_waited_for_is_no_fixed_number(toys):
    """Five are asked and receive the model and a momentum, 8 bytes; the mean gradient goes to three, or to all five."""
    found, _, ledger, text = foretold(toys, participation.overselect(1.5), mime)
    assert ledger.downlink_bytes == (5 * 8 + 3 * 4) * ROUNDS and ledger.uplink_bytes == 3 * 8 * ROUNDS
    assert found.run_messages is None
    assert "4 rounds up 96, down 144 to 240" in text


def test_numbers_that_vary_are_ranges_around_those_of_the_run(toys):
    found, sim, ledger, text = foretold(toys, participation.poisson())
    assert (found.asked, found.used, found.run_messages) == (Range(0, 8), Range(0, 8), None)
    assert 0 < ledger.uplink_bytes == ledger.downlink_bytes < 4 * 8 * ROUNDS
    assert "clients  0 to 8 a round\n" in text
    assert "4 rounds up 0 to 128, down 0 to 128" in text
    assert found.steps.run == sum(STEPS[i] for number in range(ROUNDS) for i in sim.participants.drawn(number).ids)


def test_rounds_that_do_not_wait_send_as_many_models_as_clients_start(toys):
    """Seven start at once, and another for each of the first two arrivals where one is free; three a round later."""
    found, sim, ledger, _ = foretold(toys, participation.buffered(7), system=lognormal())
    started = [sim.participants.drawn(number).started for number in range(ROUNDS)]
    assert (
        7 <= started[0] <= 8
        and sum(started[1:]) <= 3 * ROUNDS
        and ledger.downlink_bytes == 4 * sum(started)
        and ledger.uplink_bytes == 4 * 3 * ROUNDS
    )
    assert found.run_messages is None and (found.asked, found.used) == (Range(min(started), max(started)), Range(3, 3))
    alike, _, ledger, _ = foretold(toys, participation.buffered(3), steps=1, system=same())
    assert dict(alike.run_messages.sent) == dict(ledger.sent)


def test_reports_are_in_the_range_of_a_run(toys):
    found, *_ = foretold(toys, participation.power_of_choice(5))
    channel = Channel("up", "report", 4, 4)
    assert found.reports == {channel: Range(5, 5)}
    assert Ledger({channel: 5 * ROUNDS}).uplink_bytes == 80
    out = io.StringIO()
    vague = found._replace(traffic=found.traffic._replace(up=Range(0, 4)), run_messages=None)
    show(vague, "what runs", Console(file=out))
    assert f"4 rounds up {5 * 4 * ROUNDS} to {5 * 4 * ROUNDS + 3 * 4 * ROUNDS}, down {5 * 4 * ROUNDS}" in out.getvalue()


def test_a_usual_round_is_the_largest_of_some(toys):
    data = toys.clients([1.0] * 8, [0.0] * 8, STEPS)
    for drawn_by, rounds in ((participation.uniform(), 1), (participation.poisson(), 8)):
        sim = toys.build(fedavg, data, cohort_size=3, epochs=1, participation=drawn_by)
        sizes = [int(np.array(STEPS)[sim.participants.drawn(number).ids].sum()) for number in range(rounds)]
        assert sim.participants.usual_rows() == max(sizes)
