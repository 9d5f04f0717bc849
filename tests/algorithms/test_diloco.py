"""DiLoCo: its equations in NumPy, its special cases, its streaming form part by part, and the bytes of a cycle."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import codecs, executors
from fedjax8.algorithms.diloco import diloco
from fedjax8.algorithms.diloco_stream import START, Streaming, parts_of
from fedjax8.algorithms.streaming_diloco import streaming_diloco
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen
from fedjax8.systems import same
from fedjax8.types import Model, Variables

FLOAT32 = 2e-6  # a few units in the last place near 1
A, B = np.array([1.0, 4.0, 2.0]), np.array([0.0, 1.0, 3.0])


class Layers(nn.Module):
    """Three dense layers of unequal sizes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="layer_10")(
            nn.tanh(nn.Dense(5, name="layer_9")(nn.tanh(nn.Dense(7, name="layer_1")(x))))
        )


def layered(make, *, optimizer=None, steps=4, uplink=None, rounds_per_call=1, system=None):
    """A simulation of three clients of different rows with the model above."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 3)).astype(np.float32)
    data = FederatedData.from_owners({"x": x, "y": np.int32(x[:, 0] > x[:, 1])}, np.repeat(np.arange(3), (3, 4, 5)), 3)
    local = local_training(from_linen(Layers()), optimizer or optax.adamw(0.01), batch_plan(2, steps=steps))
    return simulate(
        make(local),
        data,
        cohort_size=3,
        uplink=uplink or codecs.none(),
        downlink=codecs.none(),
        executor=executors.loop(),
        rounds_per_call=rounds_per_call,
        system=system,
    )


def linear(weights):
    """The model of one number x in each layer, with the loss b sum_l w_l x_l on a row: constant gradients."""

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        total = sum(w * variables.params[name]["x"] for name, w in weights.items())
        return jnp.broadcast_to(total, batch["b"].shape), variables.state

    return Model(
        init=lambda key, batch: Variables({name: {"x": np.float32(0)} for name in weights}, {}),
        apply=apply,
        loss=lambda total, batch: total * batch["b"],
        metrics=lambda total, batch: {},
    )


def test_momentum_of_both_optimizers_goes_on_from_round_to_round(toys):
    """Inner SGD with momentum 0.5 that clients keep, outer SGD with Nesterov momentum 0.9, in NumPy."""
    steps, rounds = 3, 5
    sim = toys.build(diloco, toys.clients(A, B), steps=steps, optimizer=optax.sgd(0.1, momentum=0.5), start=2.0)
    x, outer, inner, expected = 2.0, 0.0, np.zeros(3), []
    for _ in range(rounds):
        y = np.full(3, x)
        for _ in range(steps):
            inner = A * (y - B) + 0.5 * inner
            y = y - 0.1 * inner
        gradient = np.mean(x - y)
        outer = gradient + 0.9 * outer
        x -= 0.7 * (gradient + 0.9 * outer)
        expected.append(x)
    np.testing.assert_allclose(toys.trajectory(sim, rounds), expected, rtol=10 * FLOAT32, atol=10 * FLOAT32)


def test_one_step_of_sgd_at_outer_rate_1_is_a_step_on_the_clients_batches_together(toys):
    make = functools.partial(diloco, server_learning_rate=1.0, momentum=0.0)
    sim = toys.build(make, toys.clients(A, B), steps=1)
    x, expected = 0.0, []
    for _ in range(10):
        x -= toys.LEARNING_RATE * np.mean(A * (x - B))
        expected.append(x)
    np.testing.assert_allclose(toys.trajectory(sim, 10), expected, atol=FLOAT32)


def test_streaming_in_one_part_without_delay_and_mixing_is_diloco_bit_for_bit():
    optimizer = optax.sgd(0.7, momentum=0.9, nesterov=True)
    stream = lambda local: Streaming(local, optimizer).algorithm()
    sims = layered(diloco), layered(stream)
    states = [sim.init() for sim in sims]
    for _ in range(3):
        states = [sim.run_round(state)[0] for sim, state in zip(sims, states, strict=True)]
        got, want = (jax.device_get(sim.variables(state)) for sim, state in zip(sims, states, strict=True))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_layers_go_to_parts_in_turn_in_the_order_of_their_numbers():
    params = {f"layer_{i}": {"kernel": np.zeros(i + 1), "bias": np.zeros(1)} for i in (10, 2, 9, 1)}
    split = parts_of(params, 3)
    assert [list(split.cut(params, name)) for name in split.names] == [
        ["layer_1", "layer_10"],
        ["layer_2"],
        ["layer_9"],
    ]
    changed = split.put(params, {"layer_2": {"kernel": np.ones(3), "bias": np.ones(1)}})
    assert {name for name in params if np.any(changed[name]["kernel"])} == {"layer_2"}


def test_a_cycle_has_the_bytes_of_diloco_and_its_peak_is_the_largest_part():
    streaming = functools.partial(diloco, parts=3, delay=1, mixing=0.5)
    whole, parted = layered(diloco, rounds_per_call=2), layered(streaming, rounds_per_call=2)
    lines = []
    for sim in (whole, parted):
        state, line = sim.run_rounds(sim.init(), 2)
        lines.append(line)
    of_model = 4 * (3 * 7 + 7 + 7 * 5 + 5 + 5 * 2 + 2) * 3  # bytes of three clients' models
    for (first, second), start in zip(lines, (0, of_model), strict=True):
        assert first["uplink_bytes"] == of_model and second["uplink_bytes"] == 2 * of_model
        assert first["downlink_bytes"] == of_model + start
        assert second["downlink_bytes"] - first["downlink_bytes"] == of_model
    sizes = [c.message_bytes for c in state.ledger.sent if c.direction == "up"]
    assert sorted(sizes) == [4 * 12, 4 * 28, 4 * 40] and sum(sizes) * 3 == of_model
    assert [c.name for c in state.ledger.sent if state.ledger.sent[c] == 3] == [START]


@pytest.mark.parametrize("step_seconds", [1.0, 20.0, 0.0])
def test_parts_travel_while_the_next_steps_go_on(step_seconds):
    """Three parts, at 4 B/s up and down: of each transfer one step's time is hidden, nothing of the last one's."""
    make = functools.partial(diloco, parts=3, delay=1)
    links = same(step_seconds, up_bandwidth=4.0, down_bandwidth=4.0)
    sim = layered(make, steps=6, system=links)
    state, first = sim.run_rounds(sim.init(), 1)
    second = sim.run_rounds(state, 1)[1][0]["simulated_seconds"] - first[0]["simulated_seconds"]
    sizes = {d.channel.name: d.channel.message_bytes for d in sim.discover() if d.channel.direction == "up"}
    *others, last = (2 * sizes[f"model/part_{p}"] / 4 for p in (1, 2, 0))
    hidden = sum(max(0.0, seconds - step_seconds) for seconds in others)
    assert second == pytest.approx(6 * step_seconds + hidden + last)


@pytest.mark.parametrize("delay", [0, 2])
def test_parts_synchronize_in_turn_and_are_mixed_in_after_their_delay(toys, delay):
    """Constant gradients b and 2 b in two layers: part 1 after step 3, part 0 after step 6, by hand in NumPy."""
    weights, mixing, b, rate, steps, cycles = {"layer_0": 1.0, "layer_1": 2.0}, 0.25, np.array([1.0, -3.0]), 0.1, 6, 3
    make = functools.partial(diloco, parts=2, delay=delay, mixing=mixing)
    sim = toys.build(make, toys.clients([1.0, 1.0], b), steps=steps, model=linear(weights))
    y = np.zeros((2, 2))  # clients, layers
    common, momentum, due = np.zeros(2), np.zeros(2), {}
    state = sim.init()
    for cycle in range(cycles):
        for step in range(1, steps + 1):
            y -= rate * b[:, None] * np.array(list(weights.values()))
            now = cycle * steps + step
            if step in (3, 6):
                part = 1 if step == 3 else 0
                gradient = np.mean(common[part] - y[:, part])
                momentum[part] = gradient + 0.9 * momentum[part]
                common[part] -= 0.7 * (gradient + 0.9 * momentum[part])
                due[now + delay] = part
            if now in due:
                part = due[now]
                y[:, part] = mixing * y[:, part] + (1 - mixing) * common[part]
        state, _ = sim.run_round(state)
        got = sim.variables(state).params
        np.testing.assert_allclose([got[name]["x"] for name in weights], common, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_batches_of_a_cycle_do_not_depend_on_its_parts():
    """Outer steps of rate 0 and all of the client's own values: the clients train on alone, on the same batches."""
    alone = functools.partial(diloco, server_learning_rate=0.0, mixing=1 - 2**-20)
    states = []
    for settings in ({"parts": 1}, {"parts": 3}, {"parts": 2, "delay": 1}):
        sim = layered(functools.partial(alone, **settings), optimizer=optax.sgd(1e-3))
        state, _ = sim.run_rounds(sim.init(), 1)
        states.append(jax.device_get(state.clients.arrays()["algorithm"].variables.params))
    for other in states[1:]:
        # Mixing draws a value by 1e-6 of a change of 1e-3; other batches would change it by 1e-4.
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=2e-7, rtol=0), other, states[0])


def test_a_worker_of_nan_goes_on_from_the_common_model(toys):
    """Beyond 0.5 the second client's gradient is NaN, so it misses the first cycle; half of its stale model would show.

    Cycle 1 from 1: the first goes to 1 - 0.1 * 11 = -0.1 = x. Cycle 2, both from x: -0.1 - 0.1 * 9.9 and
    -0.1 + 0.1 * 4 * 0.1.
    """
    model = toys.quadratic(1.0)
    broken = lambda x, batch: jnp.where((x > 0.5) & (batch["a"] > 3), jnp.nan, 0.0) * x
    poisoned = model._replace(loss=lambda x, batch: model.loss(x, batch) + broken(x, batch))
    make = functools.partial(diloco, mixing=0.5, server_learning_rate=1.0, momentum=0.0)
    sim = toys.build(make, toys.clients([1.0, 4.0], [-10.0, 0.0]), steps=1, model=poisoned)
    state, line = sim.run_round(sim.init())
    assert line["excluded"] == 1 and float(sim.variables(state).params["x"]) == pytest.approx(-0.1, abs=FLOAT32)
    state, line = sim.run_round(state)
    assert not line.get("excluded")
    assert float(sim.variables(state).params["x"]) == pytest.approx((-1.09 - 0.06) / 2, abs=FLOAT32)


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"parts": 0}, "parts must be at least 1"),
        ({"mixing": 1.0}, "mixing must be at least 0 and below 1"),
        ({"parts": 2, "delay": 2}, "delay must be below the 4 local steps of a round over 2 parts"),
        ({"parts": 5}, "parts must be at most the 4 local steps"),
        ({"momentum": 0.5, "server_optimizer": optax.sgd(1.0)}, "give it alone"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(toys, settings, what):
    with pytest.raises(ValueError, match=what):
        toys.build(functools.partial(diloco, **settings), toys.q2(), steps=4)


def test_more_parts_than_layers_are_refused(toys):
    with pytest.raises(UserError, match="at most the model's 1 layers, got 2"):
        sim = toys.build(functools.partial(streaming_diloco, parts=2), toys.q2(), steps=4)
        sim.init()
