"""Clients that are lost: who they are, what is counted, and what is left of a round."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import dropouts
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fda_opt import fda_opt
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedcode import fedcode
from fedjax8.algorithms.monitors import naive
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.codecs.none import none
from fedjax8.dropouts import Dropout
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.lookup import component_names, find
from fedjax8.systems import Speeds, SystemModel, same
from fedjax8.types import Contribution, RoundOutput, Sections


def build(toys, dropout, b, rows=None, *, make=fedavg, executor=None, system=None):
    wrapped = lambda local: dropouts.with_dropout(make(local), dropout)
    return toys.build(wrapped, toys.clients([1.0] * len(b), b, rows), steps=1, executor=executor, system=system)


def only(*lost_ids):
    """Loses these clients in every round."""
    return Dropout(lambda key, ids: jnp.isin(ids, jnp.array(lost_ids)))


def test_the_lost_have_received_and_sent_nothing(toys):
    for executor in (loop(), pmap(1, 2)):
        sim = build(toys, only(1, 3), [1.0, 50.0, 2.0, np.nan, 6.0], [1, 7, 3, 1, 1], executor=executor)
        state, metrics = sim.run_round(sim.init())
        assert float(sim.variables(state).params["x"]) == pytest.approx(0.1 * (1 + 3 * 2 + 6) / 5, rel=1e-5)
        assert (metrics["dropped"], metrics["clients"], metrics["excluded"]) == (2, 3, 0)
        assert (metrics["downlink_bytes"], metrics["uplink_bytes"]) == (20, 12)


def test_a_round_in_which_everyone_is_lost_changes_nothing(toys):
    sim = build(toys, only(0, 1), [1.0, 2.0])
    state, metrics = sim.run_round(sim.init())
    assert float(sim.variables(state).params["x"]) == 0.0
    assert (metrics["clients"], metrics["dropped"], metrics["uplink_bytes"]) == (0, 2, 0)


def test_the_lost_remember_what_they_did_before(toys):
    sim = build(toys, only(1), [1.0, 2.0], make=functools.partial(scaffold, learning_rate=toys.LEARNING_RATE))
    state, _ = sim.run_round(sim.init())
    own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
    assert own[0] != 0 and own[1] == 0


def test_a_random_share_is_lost_anew_in_every_round_and_the_mean_is_unbiased(toys):
    """In 400 rounds of 8 clients, 0.25 of 3200; the mean of the movements is that of all clients."""
    lost = dropouts.random(0.25).lost
    ids, b = jnp.arange(8), np.arange(8.0)
    left = ~np.asarray(jax.vmap(lambda i: lost(jax.random.fold_in(jax.random.key(0), i), ids))(jnp.arange(400)))
    assert left.mean() == pytest.approx(0.75, abs=5 * np.sqrt(0.25 * 0.75 / 3200))
    assert len(np.unique(left, axis=0)) > 100
    means = (left * b).sum(axis=1) / left.sum(axis=1)
    assert means.mean() == pytest.approx(b.mean(), abs=5 * means.std() / 20)


def test_who_is_lost_depends_on_the_client_and_not_on_its_place():
    lost, key = dropouts.random(0.5).lost, jax.random.key(3)
    ids = jnp.arange(20)
    found = np.asarray(lost(key, ids))
    np.testing.assert_array_equal(lost(key, ids[::-1]), found[::-1])


def links(step_seconds, down=1.0, up=1.0):
    """Clients of one speed."""
    return same(step_seconds, down_bandwidth=down, up_bandwidth=up)


def test_a_deadline_counts_bytes_and_steps(toys):
    """4 bytes each way, 1 s down and 2 s up, 0.5 s a step: 5 s are enough for 4 steps and not for 5."""
    rows = [1, 4, 5, 100]
    for executor in (loop(), pmap(1, 2)):
        wrapped = lambda local: dropouts.with_dropout(fedavg(local), dropouts.deadline(5.0))
        data = toys.clients([1.0] * 4, [1.0, 2.0, 50.0, np.nan], rows)
        sim = toys.build(wrapped, data, epochs=1, executor=executor, system=links(0.5, down=4.0, up=2.0))
        state, metrics = sim.run_round(sim.init())
        assert (metrics["dropped"], metrics["clients"], metrics["excluded"]) == (2, 2, 0)
        assert (metrics["downlink_bytes"], metrics["uplink_bytes"]) == (16, 8)
        want = (1 * 1 * (1 - 0.9) + 4 * 2 * (1 - 0.9**4)) / 5
        assert float(sim.variables(state).params["x"]) == pytest.approx(want, rel=1e-5)
        assert metrics["simulated_seconds"] == 5.0  # until the deadline, since someone is late
        assert metrics["wasted_bytes"] == 8


def several(kinds_down, kinds_up):
    """A round of messages of so many float32: `{name: (numbers, ids that get or send it)}`, one exchange each."""

    def make(local):
        def round_(link, state, cohort, key):
            of = lambda ids: cohort._replace(valid=cohort.valid & jnp.isin(cohort.ids, jnp.array(ids)))
            for name, (numbers, ids) in kinds_down.items():
                _, link = link.broadcast(key, jnp.zeros(numbers), of(ids), name)
            total = jnp.float32(0)
            for name, (numbers, ids) in kinds_up.items():
                say = lambda received, own, rows, key, n=numbers: Contribution(jnp.ones(n), jnp.float32(1), own, {})
                reduced, _, link = link.map_clients(say, (), of(ids), key, name, steps=0)
                total += reduced.weight
            return RoundOutput(state, cohort.states, link, {"total": total})

        return fedavg(local)._replace(round=round_)

    return make


@pytest.mark.slow
def test_messages_that_are_alternatives_do_not_add_up(toys):
    """Large ones of 40 bytes and small ones of 4: at a byte a second the slowest client takes 80 s, and not 88."""
    everyone = {"down": {"large": (10, [0]), "small": (1, [1])}, "up": {"large": (10, [0]), "small": (1, [1])}}
    for seconds, lost in ((81.0, 0), (79.0, 1), (7.0, 2)):
        make = several(everyone["down"], everyone["up"])
        sim = build(toys, dropouts.deadline(seconds), [1.0, 2.0], system=links(1.0), make=make)
        metrics = sim.run_round(sim.init())[1]
        assert (metrics["dropped"], metrics["total"]) == (lost, 2 - lost)
        assert metrics["uplink_bytes"] == {0: 44, 1: 4, 2: 0}[lost]


def test_several_messages_of_a_client_add_up_and_arrive_until_it_is_late(toys):
    """4 bytes down and three times 4 up: 16 s. With 11 s the first message up arrives at 8 s, the others do not."""
    ups = {name: (1, [0, 1]) for name in ("first", "second", "third")}
    for seconds, arrived in ((16.0, 3), (11.0, 1)):
        sim = build(
            toys, dropouts.deadline(seconds), [1.0, 2.0], system=links(1.0), make=several({"model": (1, [0, 1])}, ups)
        )
        metrics = sim.run_round(sim.init())[1]
        assert (metrics["total"], metrics["uplink_bytes"]) == (2 * arrived, 8 * arrived)
        assert metrics["dropped"] == (2 if arrived < 3 else 0)


def test_a_message_down_waits_for_the_slowest_that_is_waited_for_and_skips_the_late(toys):
    """Client 0 sends at 2 s a byte what client 1 sends at 1 s: the answer leaves at 12 s and not at 8, and at 16 s is
    with both. A client that is late gets no answer, and does not hold the others up."""

    def make(local):
        def round_(link, state, cohort, key):
            say = lambda received, own, rows, key: Contribution(jnp.ones(1), jnp.float32(1), own, {})
            _, link = link.broadcast(key, jnp.zeros(1), cohort)
            _, _, link = link.map_clients(say, (), cohort, key, "first", steps=0)
            _, link = link.broadcast(key, jnp.zeros(1), cohort, "answer")
            clock = link.clock
            _, _, link = link.map_clients(say, (), cohort, key, "second", steps=0)
            of_client = lambda x: {str(i): jnp.sum(jnp.where(cohort.ids == i, x, 0)) for i in (0, 1)}
            elapsed, late = of_client(clock.elapsed), of_client(clock.late)
            report = {f"elapsed{i}": elapsed[i] for i in elapsed} | {f"late{i}": late[i] for i in late}
            return RoundOutput(state, cohort.states, link, report)

        return fedavg(local)._replace(round=round_)

    def speeds(seed, number, ids):
        one = np.ones(len(ids))
        return Speeds(one, one, np.where(ids == 0, 0.5, 1.0), 0 * one)

    for deadline, elapsed, late in ((99.0, [16.0, 16.0], [False, False]), (11.0, [12.0, 12.0], [True, False])):
        sim = build(toys, dropouts.deadline(deadline), [1.0, 2.0], make=make, system=SystemModel(speeds))
        metrics = sim.run_round(sim.init())[1]
        assert [
            metrics["elapsed0"],
            metrics["elapsed1"],
        ] == elapsed  # 4 down, 8 or 4 up, 4 down after the last that is waited for
        assert [metrics["late0"], metrics["late1"]] == late
        assert metrics["downlink_bytes"] == 16 - 4 * sum(late)


@pytest.mark.slow
def test_parts_that_a_client_leaves_out_cost_it_no_time(toys):
    """A byte of bits and a part of 4 bytes that client 0 leaves out: 9 s down and up with it, 5 s without."""

    def encode(key, state, tree):
        there = tree["params"]["x"] > 0.15
        return Sections(there[None].astype(jnp.uint8), (tree["params"]["x"],)), state

    codec = none()._replace(encode=encode, decode=lambda state, message: {"params": {"x": message.parts[0]}})
    for seconds, lost in ((9.0, 0), (8.5, 1), (4.5, 2)):
        make = lambda local, s=seconds: dropouts.with_dropout(fedavg(local, model_state="fixed"), dropouts.deadline(s))
        data = toys.clients([1.0, 1.0], [1.0, 2.0])
        sim = toys.build(make, data, steps=1, uplink=codec, system=links(0.0))
        metrics = sim.run_round(sim.init())[1]
        assert (metrics["dropped"], metrics["uplink_bytes"]) == (lost, {0: 6, 1: 1, 2: 0}[lost])


def test_the_late_keep_the_state_they_had_before_the_round(toys):
    """Client 1 takes ten steps and is late; client 0 remembers its control variate, client 1 that it has none."""
    make = functools.partial(scaffold, learning_rate=toys.LEARNING_RATE)
    wrapped = lambda local: dropouts.with_dropout(make(local), dropouts.deadline(20.0))
    sim = toys.build(wrapped, toys.clients([1.0, 1.0], [1.0, 2.0], [1, 10]), epochs=1, system=links(1.0))
    state, metrics = sim.run_round(sim.init())
    own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
    assert metrics["dropped"] == 1
    assert own[0] != 0 and own[1] == 0


def test_a_client_that_is_late_with_its_second_message_keeps_the_state_it_had(toys):
    """11 s are enough for 4 bytes down and one message of 4 up, and for client 0, whose uplink is twice as fast, for
    two: both of its codecs have counted a message, and none of client 1's."""

    def make(local):
        def round_(link, state, cohort, key):
            say = lambda received, own, rows, key: Contribution(jnp.ones(1), jnp.float32(1), own, {})
            _, link = link.broadcast(key, jnp.zeros(1), cohort)
            for name in ("first", "second"):
                _, states, link = link.map_clients(say, (), cohort, key, name, steps=0)
                cohort = cohort._replace(states=states)
            return RoundOutput(state, cohort.states, link, {})

        return fedavg(local)._replace(round=round_)

    def speeds(seed, number, ids):
        one = np.ones(len(ids))
        return Speeds(one, one, np.where(ids == 0, 2.0, 1.0), 0 * one)

    counting = none()._replace(init=lambda tree: jnp.int32(0), encode=lambda key, state, tree: (tree, state + 1))
    dropped = lambda local: dropouts.with_dropout(make(local), dropouts.deadline(11.0))
    data = toys.clients([1.0] * 2, [1.0, 2.0])
    sim = toys.build(dropped, data, steps=1, uplink=counting, system=SystemModel(speeds))
    state, metrics = sim.run_round(sim.init())
    counted = state.clients.arrays()["uplink"]
    assert metrics["dropped"] == 1 and metrics["uplink_bytes"] == 3 * 4
    assert {name: np.asarray(n).tolist() for name, n in counted.items()} == {"first": [1, 0], "second": [1, 0]}


def sizes_of(sim):
    """Bytes of each kind of message."""
    return {d.channel[:2]: d.channel.message_bytes for d in sim.discover()}


def test_the_slowest_round_of_fedcode_is_that_of_one_message_each_way(toys):
    """At a byte a second, with two steps of a second: a first round sends whole models both ways, and no codebooks."""
    make = functools.partial(fedcode, clusters=2)
    built = lambda seconds: toys.build(
        lambda local: dropouts.with_dropout(make(local), dropouts.deadline(seconds)),
        toys.clients([1.0, 1.0], [1.0, 2.0]),
        steps=2,
        system=links(1.0),
    )
    of = sizes_of(built(1.0))
    sim = built(of["down", "model"] + of["up", "model"] + 2.5)
    metrics = sim.run_round(sim.init())[1]
    assert (metrics["dropped"], metrics["clients"], metrics["excluded"]) == (0, 2, 0)


def test_the_slowest_round_of_fda_opt_has_a_state_and_the_steps_of_every_unit(toys):
    """Three units of two steps: a deadline half a second before their end loses everyone, at the last message."""
    make = functools.partial(fda_opt, monitor=naive(), max_units=3, threshold="fixed", first_threshold=1e9)
    built = lambda seconds: toys.build(
        lambda local: dropouts.with_dropout(make(local), dropouts.deadline(seconds)),
        toys.clients([1.0, 1.0], [1.0, 2.0]),
        steps=2,
        system=links(1.0),
    )
    of = sizes_of(built(1.0))
    sim = built(of["down", "model"] + 3 * (2 + of["up", "monitor"] + 1) + of["up", "model"] - 0.5)
    metrics = sim.run_round(sim.init())[1]
    assert (metrics["units"], metrics["dropped"], metrics["clients"]) == (3, 2, 0)
    assert metrics["uplink_bytes"] == 2 * 3 * of["up", "monitor"]


def test_an_algorithm_that_needs_everyone_is_refused(toys):
    with pytest.raises(UserError, match="needs every client in every round"):
        build(toys, dropouts.random(), [1.0, 2.0], make=functools.partial(fda, theta=1.0))
    with pytest.raises(UserError, match="needs every client in every round"):
        build(toys, dropouts.deadline(1.0), [1.0, 2.0], make=functools.partial(fda, theta=1.0))


def test_every_example_is_a_dropout_and_settings_out_of_range_are_refused():
    for name in component_names("fedjax8.dropouts"):
        factory = find(name, "fedjax8.dropouts")
        assert all(isinstance(factory(**example), Dropout) for example in factory.__globals__["EXAMPLES"])
    for make in (
        functools.partial(dropouts.random, 1.0),
        functools.partial(dropouts.deadline, 0),
        functools.partial(dropouts.deadline, float("nan")),
    ):
        with pytest.raises(ValueError, match=r"must|need"):
            make()
