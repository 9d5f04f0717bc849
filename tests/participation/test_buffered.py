"""Rounds that do not wait: the order of arrivals against a simulation of events, and what rounds make of it."""

import functools

import jax
import numpy as np
import pytest

from fedjax8 import dropouts, staleness
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedgate import fedgate
from fedjax8.algorithms.fedopt import fedopt
from fedjax8.algorithms.mime import mime
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.codecs.fp8 import fp8
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.participation import Ask, Phases, asynchronous, buffered, sample_cohort
from fedjax8.participation.base import generator
from fedjax8.systems import ServerLink, Speeds, SystemModel, lognormal, same

N = 40


def phases_of(seed):
    """Seconds of clients that depend on the client and the version, some of them equal."""

    def phases(version, ids, sizes):
        of = lambda i: np.random.default_rng([seed, version, i]).integers(1, 9, size=3) / 4
        down, train, up = np.array([of(int(i)) for i in ids]).reshape(-1, 3).T
        return Phases(down, train, up, np.full(len(ids), 2.0), np.full(len(ids), 1.0))

    return phases


def ask(phases, size, clients=N, available=None):
    made = Ask(3, 0, clients, size, lambda ids: np.ones(len(ids), int), lambda sizes: sizes, None, None, phases)
    return made if available is None else made._replace(available=available)


def events(phases, size, concurrency, steps, clients=N):
    """Server steps as [(time, {client: age})], by the plainest simulation: one list, searched anew at each event."""
    flights, buffer, found, version, now, order = [], [], [], 0, 0.0, 0
    while len(found) < steps:
        busy = {f[2] for f in flights} | {f[2] for f in buffer}
        while len(flights) < concurrency and len(busy) < clients:
            first = sample_cohort(3, version, clients, concurrency if version == 0 else size)
            queue = list(generator(3, version, 1).permutation(first))
            wanted = concurrency if version == 0 else size
            queue += list(generator(3, version, 2, 1).choice(clients, min(4 * wanted, clients), replace=False))
            queue += list(generator(3, version, 2, 2).choice(clients, clients, replace=False))
            client = next(int(c) for c in queue if c not in busy)
            flights.append(
                (now + sum(x[0] for x in phases(version, np.array([client]), None)[:3]), order, client, version)
            )
            busy, order = busy | {client}, order + 1
        now = min(flights)[0]
        for flight in sorted(f for f in flights if f[0] == now):
            flights.remove(flight)
            buffer.append(flight)
            if len(buffer) == size:
                found.append((now, {c: version - v for _, _, c, v in buffer}))
                version, buffer = version + 1, []
    return found


@pytest.mark.parametrize(("size", "concurrency"), [(5, 5), (5, 12), (1, 7), (8, 30)])
def test_order_and_ages_are_those_of_a_simulation_of_events(size, concurrency):
    """Over 1,000 arrivals, many of them at the same moment."""
    steps = 1000 // size
    wanted = events(phases_of(1), size, concurrency, steps)
    made, asked, now = buffered(concurrency), ask(phases_of(1), size), 0.0
    for number, (time, ages) in enumerate(wanted):
        drawn = made.draw(asked._replace(round=number))
        now += drawn.schedule.seconds
        assert dict(zip(drawn.ids.tolist(), drawn.ages.tolist(), strict=True)) == ages
        assert now == pytest.approx(time, rel=1e-12)
        assert not drawn.lost.any() and (np.diff(drawn.ids) > 0).all()
    assert max(max(ages.values()) for _, ages in wanted) >= (2 if concurrency > size else 0)


def test_a_draw_is_of_its_round_alone():
    made, asked = buffered(12), ask(phases_of(2), 5)
    late = made.draw(asked._replace(round=1500))
    early = [made.draw(asked._replace(round=r)) for r in (3, 0, 1500)]
    other = buffered(12).draw(asked._replace(round=3))
    np.testing.assert_array_equal(early[0].ids, other.ids)
    np.testing.assert_array_equal(early[2].ages, late.ages)
    others = made.draw(ask(phases_of(9), 5, 30))  # another run with the same participation
    assert others.ids.max() < 30 and others.ids.tolist() != made.draw(asked).ids.tolist()


def test_started_clients_arrive_or_are_on_their_way():
    made, asked = buffered(12), ask(phases_of(1), 5)
    started = [made.draw(asked._replace(round=r)).started for r in range(50)]
    assert started[0] >= 12 and 5 * 50 <= sum(started) < 5 * 50 + 12


def test_clients_start_while_they_are_available_only():
    awake = lambda seconds, ids: (ids % 2 == 0) | (seconds >= 50)
    made, asked, now = buffered(6), ask(phases_of(1), 3, available=awake), 0.0
    for number in range(60):
        drawn = made.draw(asked._replace(round=number))
        now += drawn.schedule.seconds
        assert now >= 50 or not (drawn.ids % 2).any()
    assert now > 60 and any((made.draw(asked._replace(round=r)).ids % 2).any() for r in range(60))
    never = ask(phases_of(1), 3, available=lambda seconds, ids: np.zeros(len(ids), bool))
    again = buffered(6)
    for _ in range(2):
        with pytest.raises(UserError, match="no client is available"):
            again.draw(never)


def test_the_largest_rate_is_of_the_transfers_that_overlap():
    """Four clients receive at 2 B/s at the start, all at once; later up at 1 B/s each."""
    made, asked = buffered(4), ask(phases_of(1), 4)
    assert made.draw(asked).schedule.peak_rate == 8.0


def rows(toys, count=6):
    return toys.clients([1.0] * count, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0][:count])


def of_clients(step):
    """Seconds of a step by client, no transfers to speak of."""

    def speeds(seed, number, ids):
        one = np.ones(len(ids))
        return Speeds(np.asarray(step, float)[ids], 1e30 * one, 1e30 * one, 0 * one)

    return SystemModel(speeds)


def states(sim, rounds, calls=None):
    state, lines = sim.init(), []
    while state.round < rounds:
        state, more = sim.run_rounds(state, min(calls or rounds, rounds - state.round))
        lines += more
    return state, lines


def without_time(line):
    """The line with seconds as they are in float32."""
    rounded = {"simulated_seconds": pytest.approx(line["simulated_seconds"], rel=1e-6)}
    return {k: v for k, v in line.items() if k not in ("staleness", "stale", "waiting_share", "peak_rate")} | rounded


@pytest.mark.parametrize(
    "make", [fedavg, functools.partial(fedavg, payload="update"), fedopt], ids=["params", "update", "fedopt"]
)
@pytest.mark.parametrize("codec", [None, fp8()], ids=["float32", "fp8"])
def test_equal_speeds_and_a_buffer_of_all_is_the_synchronous_round_bit_for_bit(toys, make, codec):
    settings = {"steps": 2, "cohort_size": 3, "system": same(1.0), "uplink": codec}
    plain, lines = states(toys.build(make, rows(toys), **settings), 6)
    drawn, others = states(toys.build(make, rows(toys), participation=buffered(3), **settings), 6)
    for a, b in zip(jax.tree.leaves(plain.server), jax.tree.leaves(drawn.server), strict=True):
        np.testing.assert_array_equal(a, b)
    assert [without_time(x) for x in lines] == [{k: x[k] for k in without_time(x)} for x in others]


def by_hand(factor, draws, rate, payload, rounds=12):
    """The server's x after each step, from the clients and ages that `draws(number)` tells."""
    b = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
    xs = [0.0]
    for number in range(rounds):
        drawn = draws(number)
        starts = np.array([xs[number - age] for age in drawn.ages])
        ends = b[drawn.ids] + (starts - b[drawn.ids]) * 0.9
        change = ends - (starts if payload == "update" else xs[-1])
        xs.append(xs[-1] + rate * np.mean(factor(drawn.ages) * change))
    return xs[1:]


@pytest.mark.parametrize("executor", [loop(), pmap(1, 2)], ids=["loop", "pmap"])
@pytest.mark.parametrize("payload", ["update", "params"])
def test_each_client_starts_from_the_model_of_its_age(toys, payload, executor):
    factor = staleness.polynomial(0.5)
    make = functools.partial(fedavg, server_learning_rate=0.5, payload=payload, weighting="uniform")
    slow = of_clients([1.0, 1.5, 2.25, 4.0, 7.0, 9.0])
    sim = toys.build(
        make, rows(toys), steps=1, cohort_size=2, system=slow, participation=buffered(4), executor=executor
    )
    state, lines = states(sim, 12)
    draws = sim.participants._replace(participation=buffered(4)).drawn
    expected = by_hand(factor, draws, 0.5, payload)
    assert float(sim.variables(state).params["x"]) == pytest.approx(expected[-1], rel=1e-5)
    assert max(int(age) for line in lines for age in line["staleness"]) >= 3
    drawn = [draws(number) for number in range(12)]
    assert lines[-1]["simulated_seconds"] == pytest.approx(sum(d.schedule.seconds for d in drawn))
    started = sum(d.started for d in drawn)
    assert lines[-1]["uplink_bytes"] == 4 * 2 * 12 and lines[-1]["downlink_bytes"] == 4 * started


def test_one_at_a_time_mixes_models(toys):
    """FedAsync: x <- (1 - alpha s) x + alpha s y, s by a hinge."""
    factor = staleness.hinge(2.0, 1.0)
    made = asynchronous(3, staleness="hinge", exponent=2.0, threshold=1.0)
    make = functools.partial(fedavg, server_learning_rate=0.6, payload="params")
    sim = toys.build(
        make, rows(toys), steps=1, cohort_size=1, system=of_clients([1, 2, 3, 5, 7, 9]), participation=made
    )
    state, _ = states(sim, 12)
    draws = sim.participants._replace(participation=asynchronous(3)).drawn
    assert float(sim.variables(state).params["x"]) == pytest.approx(by_hand(factor, draws, 0.6, "params")[-1], rel=1e-5)


def test_an_update_older_than_the_models_kept_is_dropped_and_its_bytes_count(toys):
    slow = of_clients([1.0, 1.0, 1.0, 1.0, 1.0, 40.0])
    make = functools.partial(fedavg, payload="update", weighting="uniform")
    sim = toys.build(make, rows(toys), steps=1, cohort_size=2, system=slow, participation=buffered(6 - 2, versions=4))
    state, lines = states(sim, 60)
    stale = sum(line["stale"] for line in lines)
    assert stale > 0 and max(int(age) for line in lines for age in line["staleness"]) >= 4
    assert all(line["clients"] == 2 - line["stale"] and line["excluded"] == 0 for line in lines)
    assert lines[-1]["uplink_bytes"] == 4 * 2 * 60 and lines[-1]["wasted_bytes"] == 8 * stale
    assert float(sim.variables(state).params["x"]) < 16  # client 5, who pulls to 32, has never counted


def test_a_run_that_is_resumed_in_the_middle_is_the_same_run(toys):
    """State and rounds alone, with clients that remember, a codec with a state, and dropouts."""

    def build():
        make = lambda local: dropouts.with_dropout(
            scaffold(local, learning_rate=toys.LEARNING_RATE), dropouts.random(0.2)
        )
        system = lognormal(0.5, jitter=0.5, link_spread=1.0)
        return toys.build(
            make, rows(toys), steps=2, cohort_size=2, system=system, participation=buffered(4), uplink=fp8()
        )

    whole, lines = states(build(), 20)
    half, first = states(build(), 9)
    again = build()
    rest, second = again.run_rounds(half, 11)
    while rest.round < 20:
        rest, more = again.run_rounds(rest, 20 - rest.round)
        second += more
    assert first + second == lines
    for a, b in zip(jax.tree.leaves(whole.server), jax.tree.leaves(rest.server), strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_cannot_go_together_is_refused(toys):
    build = functools.partial(toys.build, steps=1, cohort_size=2, participation=buffered(4))
    with pytest.raises(UserError, match="no clock; choose a system model"):
        build(fedavg, rows(toys))
    for make in (mime, lambda local: fedgate(local, toys.LEARNING_RATE)):
        with pytest.raises(UserError, match="start from the server's present model"):
            build(make, rows(toys), system=same())
    with pytest.raises(UserError, match="start from the server's present model"):
        toys.build(lambda local: fda(local, theta=1.0), rows(toys), steps=1, participation=buffered(6), system=same())
    late = lambda local: dropouts.with_dropout(fedavg(local), dropouts.deadline(1.0))
    with pytest.raises(UserError, match="a deadline has no meaning"):
        build(late, rows(toys), system=same())
    with pytest.raises(UserError, match="link that clients share"):
        build(fedavg, rows(toys), system=same()._replace(server=ServerLink(1.0, 1.0)))
    away = same()._replace(available=lambda seconds, ids: ids > 0)
    with pytest.raises(UserError, match="when clients are available, which this participation does not ask"):
        toys.build(fedavg, rows(toys), steps=1, cohort_size=2, system=away)
    for made, cohort, message in (
        (buffered(1), 2, "raise concurrency"),
        (buffered(7), 2, "there are 6 clients"),
        (asynchronous(3), 2, "set it to 1"),
    ):
        with pytest.raises(UserError, match=message):
            toys.build(fedavg, rows(toys), steps=1, cohort_size=cohort, participation=made, system=same())
    for settings in (
        {"staleness": "linear"},
        {"exponent": -1.0},
        {"versions": 0},
        {"concurrency": 0},
        {"threshold": float("nan")},
    ):
        with pytest.raises(ValueError, match=next(iter(settings))):
            buffered(**settings)


def test_factors_by_age():
    ages = np.array([0, 1, 3, 8])
    np.testing.assert_allclose(buffered(staleness="constant").factor(ages), 1.0)
    np.testing.assert_allclose(buffered().factor(ages), [1, 2**-0.5, 0.5, 1 / 3])
    np.testing.assert_allclose(buffered(staleness="hinge", exponent=2.0, threshold=3.0).factor(ages), [1, 1, 1, 1 / 11])
