"""The link: exact traffic, excluded clients, padding, codec state."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.parts import ClientOutput, ServerOutput, from_parts
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.engine.simulation import simulate
from fedjax8.executors.chunked import chunked
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.executors.vmap import vmap
from fedjax8.local import local_training
from fedjax8.types import Codec, Contribution, RoundOutput


def counting() -> Codec:
    """Lossless, with a state that counts the messages it encoded."""
    return none()._replace(init=lambda tree: jnp.int32(0), encode=lambda key, state, tree: (tree, state + 1))


def build(toys, data, *, uplink=None, downlink=None, executor=None, make=fedavg, cohort_size=None, start=0.0):
    model = toys.quadratic(start)
    local = local_training(model, optax.sgd(0.1), batch_plan(1, epochs=1))
    return simulate(
        make(local),
        data,
        cohort_size=cohort_size or data.num_clients,
        uplink=none() if uplink is None else uplink,
        downlink=none() if downlink is None else downlink,
        executor=loop() if executor is None else executor,
    )


@pytest.mark.parametrize("executor", [loop, vmap, functools.partial(chunked, 4), pmap, functools.partial(pmap, 2)])
def test_padding_and_executor_change_neither_model_nor_bytes(toys, executor):
    data = toys.clients([1.0, 4.0, 2.0, 3.0, 0.5], [0.0, 1.0, -1.0, 2.0, 3.0], [1, 3, 2, 5, 4])
    reference = build(toys, data)
    state, want = reference.run_round(reference.init())
    sim = build(toys, data, executor=executor())
    after, got = sim.run_round(sim.init())
    x, expected = (float(s.variables(t).params["x"]) for s, t in ((sim, after), (reference, state)))
    assert x == pytest.approx(expected, rel=1e-6)  # float32 sums in another order
    assert (got["uplink_bytes"], got["downlink_bytes"], got["clients"]) == (20, 20, 5)
    assert got["train_loss"] == pytest.approx(want["train_loss"], rel=1e-6)


def test_a_client_that_sends_nan_is_left_out_and_counted(toys):
    data = toys.clients([1.0, np.nan, 1.0], [1.0, 1.0, 3.0])
    sim = build(toys, data)
    state, metrics = sim.run_round(sim.init())
    assert (metrics["excluded"], metrics["clients"]) == (1, 2)
    assert float(sim.variables(state).params["x"]) == pytest.approx(0.1 * 2.0, rel=1e-6)
    assert metrics["uplink_bytes"] == 12  # what was sent was sent
    assert np.isfinite(metrics["train_loss"])


def test_a_round_without_a_usable_client_changes_nothing(toys):
    sim = build(toys, toys.clients([np.nan, np.inf], [1.0, 1.0]), start=2.0)
    before = sim.init()
    state, metrics = sim.run_round(before)
    assert metrics["excluded"] == 2
    assert float(sim.variables(state).params["x"]) == 2.0


def test_an_empty_client_counts_as_sent_but_weighs_nothing(toys):
    data = toys.clients([1.0, 1.0], [1.0, 5.0], [2, 1])
    empty = data.select(np.array([0, 1]))
    empty.sizes[1] = 0
    sim = build(toys, empty)
    state, metrics = sim.run_round(sim.init())
    assert float(sim.variables(state).params["x"]) == pytest.approx(1 - 0.9**2, rel=1e-6)
    assert metrics["uplink_bytes"] == 8


def test_bytes_beyond_32_bits_are_exact():
    from fedjax8.exchange.ledger import Ledger
    from fedjax8.types import Channel

    big = 3 * 2**31 + 1
    ledger = Ledger().add({Channel("up", "model", big, 4 * big): np.int32(1000)})
    assert (ledger.uplink_bytes, ledger.float32_bytes) == (1000 * big, 4000 * big)
    assert ledger.saving == 4.0


def test_uplink_codec_state_belongs_to_the_client_and_waits_for_its_next_turn(toys):
    data = toys.clients([1.0] * 6, [1.0] * 6)
    sim = build(toys, data, uplink=counting(), downlink=counting(), cohort_size=2, executor=pmap())
    state, turns = sim.init(), np.zeros(6, int)
    from fedjax8.participation import sample_cohort

    for round_number in range(5):
        turns[sample_cohort(0, round_number, 6, 2)] += 1
        state, _ = sim.run_round(state)
        np.testing.assert_array_equal(state.clients.arrays()["uplink"]["model"], turns)
        assert int(state.down_states["model"]) == round_number + 1
    assert turns.max() > 1


def test_a_client_with_nan_keeps_its_old_state(toys):
    sim = build(toys, toys.clients([1.0, np.nan], [1.0, 1.0]), uplink=counting())
    state, _ = sim.run_round(sim.init())
    np.testing.assert_array_equal(state.clients.arrays()["uplink"]["model"], [1, 0])


def test_the_broadcast_is_one_draw_for_all_clients(toys):
    """Each client reports what it received, as a sum and a sum of squares: equal values have no spread."""

    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            x = start.params["x"]
            return ClientOutput({"params": start.params}, jnp.float32(1), start, (), {"sum": x, "squares": x * x})

        return from_parts(local, client=client, server=lambda state, mean, key: ServerOutput(mean.tree["params"]))

    data = toys.clients([1.0] * 8, [1.0] * 8)

    def coarse_round(key, state, tree):
        return jax.tree.map(lambda x: jnp.round(x + jax.random.uniform(key, ())), tree), state

    sim = build(toys, data, make=make, downlink=none()._replace(encode=coarse_round), start=0.4)
    _, metrics = sim.run_round(sim.init())
    assert metrics["squares"] / 8 - (metrics["sum"] / 8) ** 2 == pytest.approx(0.0, abs=1e-6)


def test_discovery_names_every_message_without_running(toys):
    sim = build(toys, toys.q2())
    found = {(d.channel.direction, d.channel.name): d.channel.message_bytes for d in sim.discover()}
    assert found == {("down", "model"): 4, ("up", "model"): 4}


def mini_fda(threshold):
    """Every client sends one float32 a step; the model goes down only once their sum has passed a threshold."""

    def make(local):
        def round_(link, state, cohort, key):
            def say(received, own, rows, key):
                return Contribution({"one": jnp.float32(1)}, jnp.float32(1), own, {})

            def send(link):
                _, link = link.broadcast(key, {"params": state.variables.params}, cohort)
                return link

            def step(index, carry):
                link, total = carry
                reduced, _, link = link.map_clients(say, (), cohort, key, name="monitor", codec=none())
                total = total + reduced.weight
                return jax.lax.cond(total > threshold, send, lambda link: link, link), total

            link, total = jax.lax.fori_loop(0, 6, step, (link, jnp.float32(0)))
            return RoundOutput(state, cohort.states, link, {"total": total})

        return fedavg(local)._replace(round=round_)

    return make


@pytest.mark.parametrize("executor", [loop, functools.partial(pmap, 2)])
def test_a_link_goes_through_loops_and_conditions_with_exact_counts(toys, executor):
    data = toys.clients([1.0] * 4, [1.0] * 4)
    sim = build(toys, data, make=mini_fda(threshold=9.0), downlink=counting(), executor=executor())
    state, metrics = sim.run_round(sim.init())
    assert metrics["total"] == 24
    assert metrics["uplink_bytes"] == 6 * 4 * 4  # a float32 from each client in each step
    assert metrics["downlink_bytes"] == 4 * 4 * 4  # steps 3 to 6, when 12, 16, 20, 24 have passed 9
    assert int(state.down_states["model"]) == 4


def test_two_trees_on_one_channel_are_refused(toys):
    def make(local):
        def round_(link, state, cohort, key):
            _, link = link.broadcast(key, {"a": jnp.zeros(2)}, cohort)
            _, link = link.broadcast(key, {"b": jnp.zeros(3)}, cohort)
            return RoundOutput(state, cohort.states, link, {})

        return fedavg(local)._replace(round=round_)

    with pytest.raises(ValueError, match="two different trees are sent down as 'model'"):
        build(toys, toys.q2(), make=make).discover()


@pytest.mark.parametrize("weight", [-1.0, np.nan, np.inf])
def test_a_weight_that_is_none_excludes_its_client(toys, weight):
    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            odd = rows.size == 3
            return ClientOutput({"params": {"x": jnp.float32(1)}}, jnp.where(odd, weight, 1.0), start, (), {})

        return from_parts(local, client=client, server=lambda state, mean, key: ServerOutput(mean.tree["params"]))

    sim = build(toys, toys.clients([1.0] * 3, [1.0] * 3, [1, 3, 2]), make=make)
    state, metrics = sim.run_round(sim.init())
    assert metrics["excluded"] == 1
    assert float(sim.variables(state).params["x"]) == 1.0


def test_an_infinity_is_seen_before_an_8_bit_format_saturates_it(toys):
    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            bad = jnp.where(rows.size == 3, jnp.inf, 1.0)
            tree = {"params": {"kernel": jnp.full((2, 2), bad), "kernel_clip": jnp.float32(2)}}
            return ClientOutput(tree, jnp.float32(1), start, (), {})

        return from_parts(local, client=client, server=lambda state, mean, key: ServerOutput(state.variables.params))

    sim = build(toys, toys.clients([1.0] * 3, [1.0] * 3, [1, 3, 2]), make=make, uplink=fp8())
    assert sim.run_round(sim.init())[1]["excluded"] == 1


def test_a_state_can_be_run_twice(toys):
    sim = build(toys, toys.clients([1.0] * 4, [1.0] * 4), uplink=counting())
    state = sim.init()
    first, second = (sim.run_round(state)[0] for _ in range(2))
    np.testing.assert_array_equal(first.clients.arrays()["uplink"]["model"], second.clients.arrays()["uplink"]["model"])


def test_integers_in_a_contribution_stay_integers(toys):
    def make(local):
        def client(start, extra, memory, rows, key, round_number):
            return ClientOutput({"count": rows.size}, jnp.float32(1), start, (), {})

        def server(state, mean, key):
            assert mean.tree["count"].dtype == jnp.int32
            return ServerOutput({"x": mean.tree["count"].astype(jnp.float32)})

        return from_parts(local, client=client, server=server)

    sim = build(toys, toys.clients([1.0] * 3, [1.0] * 3, [1, 3, 5]), make=make)
    assert float(sim.variables(sim.run_round(sim.init())[0]).params["x"]) == 3.0
