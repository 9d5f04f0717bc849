"""Simulated seconds of a round: formulas by hand, in numbers that float32 holds exactly."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import dropouts
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.participation import overselect
from fedjax8.systems import Speeds, SystemModel, lognormal, same
from fedjax8.types import Contribution, RoundOutput


def of_clients(step=1.0, down=4.0, up=4.0, latency=0.0):
    """A system model of arrays, or numbers, by client."""

    def of(x, ids):
        return np.full(len(ids), x, float) if np.ndim(x) == 0 else np.asarray(x, float)[ids]

    def speeds(seed, number, ids):
        return Speeds(*(of(x, ids) for x in (step, down, up, latency)))

    return SystemModel(speeds)


def first_line(toys, system, b, *, make=fedavg, rows=None, executor=None, rounds=1, **more):
    sim = toys.build(
        make, toys.clients([1.0] * len(b), b, rows), epochs=1, executor=executor or loop(), system=system, **more
    )
    return sim.run_rounds(sim.init(), rounds)[1][-1]


def test_one_client_takes_what_its_link_and_its_steps_take(toys):
    """4 bytes down at 8 B/s, 3 steps of half a second, 4 bytes up at 2 B/s, a quarter second of latency each way."""
    line = first_line(toys, same(0.5, down_bandwidth=8.0, up_bandwidth=2.0, latency=0.25), [1.0], rows=[3])
    assert line["simulated_seconds"] == 4 / 8 + 3 * 0.5 + 4 / 2 + 2 * 0.25
    assert (line["waiting_share"], line["wasted_bytes"], line["peak_rate"]) == (0.0, 0, 8.0)


@pytest.mark.parametrize("executor", [loop(), pmap(1, 2)], ids=["loop", "pmap"])
def test_a_round_takes_as_long_as_its_slowest_client(toys, executor):
    """Clients take 3, 4 and 10 s; the others wait 7 and 6 of 10 s. Rounds add up."""
    line = first_line(toys, of_clients(step=[1.0, 2.0, 8.0]), [1.0, 2.0, 3.0], executor=executor, rounds=2)
    assert line["simulated_seconds"] == 20.0
    assert line["waiting_share"] == pytest.approx((7 + 6) / 30, rel=1e-6)
    assert line["peak_rate"] == 12.0


def test_uploads_that_overlap_add_up_and_others_do_not(toys):
    """Up at 8 B/s: from 1 to 1.5 s and from 1.25 to 1.75 s, and one from 9 s on. Down all at once, at 1 B/s each."""
    line = first_line(toys, of_clients(step=[0.0, 0.25, 8.0], down=1.0, up=8.0), [1.0, 2.0, 3.0])
    assert line["peak_rate"] == 16.0
    apart = first_line(toys, of_clients(step=[0.0, 0.5, 8.0], down=1.0, up=8.0), [1.0, 2.0, 3.0])
    assert apart["peak_rate"] == 8.0  # one ends as the other begins


def test_dropouts_waste_what_they_received_and_nobody_waits_for_them(toys):
    lost = dropouts.Dropout(lambda key, ids: ids == 2)
    make = lambda local: dropouts.with_dropout(fedavg(local), lost)
    line = first_line(toys, of_clients(step=[1.0, 2.0, 8.0]), [1.0, 2.0, 3.0], make=make)
    assert (line["simulated_seconds"], line["wasted_bytes"], line["dropped"]) == (4.0, 4, 1)


def test_a_dropout_with_a_slow_link_holds_nobody_up(toys):
    """Client 2 receives for 40 s and sends nothing; the others are done after 3 and 4."""
    lost = dropouts.Dropout(lambda key, ids: ids == 2)
    make = lambda local: dropouts.with_dropout(fedavg(local), lost)
    line = first_line(toys, of_clients(step=[1.0, 2.0, 0.0], down=[4.0, 4.0, 0.1]), [1.0, 2.0, 3.0], make=make)
    assert line["simulated_seconds"] == 4.0
    assert line["waiting_share"] == pytest.approx(1 / 8)


def test_when_everyone_drops_out_the_round_lasts_until_they_have_the_model(toys):
    make = lambda local: dropouts.with_dropout(fedavg(local), dropouts.Dropout(lambda key, ids: ids >= 0))
    line = first_line(toys, of_clients(down=[4.0, 2.0]), [1.0, 2.0], make=make)
    assert (line["simulated_seconds"], line["clients"], line["wasted_bytes"]) == (2.0, 0, 8)


def test_an_excluded_client_is_waited_for_and_wastes_both_ways(toys):
    line = first_line(toys, of_clients(step=[1.0, 8.0]), [1.0, np.nan])
    assert (line["simulated_seconds"], line["wasted_bytes"], line["excluded"]) == (10.0, 8, 1)


def test_the_first_of_those_asked_end_the_round(toys):
    """Three of four by their seconds: 2 + 1, 2, 4, and not 8."""
    line = first_line(
        toys, of_clients(step=[8.0, 2.0, 4.0, 1.0]), [1.0] * 4, cohort_size=3, participation=overselect(1.3)
    )
    assert (line["simulated_seconds"], line["wasted_bytes"], line["clients"]) == (6.0, 4, 3)


def test_seconds_that_are_foretold_are_those_that_are_measured(toys):
    """SCAFFOLD sends twice as much; jitter and latency too."""
    system = lognormal(0.3, jitter=0.4, link_spread=0.3, latency=0.1, down_bandwidth=3.0, up_bandwidth=2.0)
    for make in (fedavg, lambda local: scaffold(local, learning_rate=toys.LEARNING_RATE)):
        sim = toys.build(
            make, toys.clients([1.0] * 5, [1.0] * 5, [1, 2, 3, 4, 5]), epochs=1, cohort_size=3, system=system
        )
        state, lines = sim.run_rounds(sim.init(), 4)
        whole = 0.0
        for number, line in enumerate(lines):
            ids = sim.participants.drawn(number).ids
            whole += sim.participants.seconds(number, ids).max()
            assert line["simulated_seconds"] == pytest.approx(whole, rel=1e-5)
        assert state.ledger.seconds == lines[-1]["simulated_seconds"]


def test_messages_within_a_round_add_their_own(toys):
    """FDA that never synchronizes: a state up and a decision down a step, alike for both clients at 4 B/s."""
    sim = toys.build(lambda local: fda(local, theta=1e9), toys.q2(), steps=3, system=of_clients())
    state, lines = sim.run_rounds(sim.init(), 1)
    assert sum(count for channel, count in state.ledger.sent.items() if channel.name == "monitor") == 2 * 3
    of_one = sum(channel.message_bytes * count for channel, count in state.ledger.sent.items()) / 2
    assert lines[0]["simulated_seconds"] == pytest.approx(3 * 1.0 + of_one / 4)


def in_background(delay):
    """A round that sends up and down in the background of `delay` local steps."""

    def make(local):
        def round_(link, state, cohort, key):
            say = lambda received, own, rows, key: Contribution(jnp.ones(4), jnp.float32(1), own, {})
            _, _, link = link.map_clients(say, (), cohort, key, "part", steps=2, background=True)
            _, link = link.broadcast(key, jnp.zeros(4), cohort, "answer", background=True)
            quiet = lambda received, own, rows, key: Contribution(jnp.ones(1), jnp.float32(1), own, {})
            link = link if delay else link.wait(cohort)
            _, _, link = link.map_clients(quiet, (), cohort, key, "steps", steps=delay)
            return RoundOutput(state, cohort.states, link.wait(cohort), {})

        return fedavg(local)._replace(round=round_)

    return make


@pytest.mark.parametrize(("delay", "seconds"), [(0, 2 + 8 + 1), (4, 2 + 8), (8, 2 + 8 + 1), (20, 2 + 20 + 1)])
def test_transfers_in_the_background_take_time_beside_the_steps(toys, delay, seconds):
    """16 bytes up and 16 down at 4 B/s are 8 s, beside `delay` steps of a second; a last message takes one."""
    line = first_line(toys, same(1.0, down_bandwidth=4.0, up_bandwidth=4.0), [1.0], make=in_background(delay))
    assert line["simulated_seconds"] == seconds


def test_a_deadline_without_a_clock_is_refused(toys):
    make = lambda local: dropouts.with_dropout(fedavg(local), dropouts.deadline(1.0))
    with pytest.raises(UserError, match="no clock; choose a system model"):
        toys.build(make, toys.q2(), steps=1)


def test_a_run_without_a_clock_tells_no_seconds(toys):
    line = first_line(toys, None, [1.0, 2.0])
    assert not {"simulated_seconds", "waiting_share", "peak_rate", "wasted_bytes"} & set(line)
