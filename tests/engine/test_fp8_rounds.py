"""Whole rounds of FP8FedAvg-UQ: what quantization does, and does not do, to the model."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import adapters, algorithms, codecs, data, executors, local_training, models, simulate
from fedjax8.algorithms import refinements

ROUNDING = 2.0**-22  # relative, of float32 sums over four clients
# Squared error over squared weights, of stochastic rounding with three mantissa bits. The step s of a weight x is
# between |x| / 16 and |x| / 8; the error is s^2 f (1 - f): s^2 / 6 on average, of which half may be missing, and
# s^2 / 4 at most. Subnormal steps, 2^-17 of the largest weight, add nothing that shows.
LEAST, MOST = 16.0**-2 / 12, 8.0**-2 / 4


def images(rng, clients=4):
    """Eight random images of each client."""
    return {
        "x": rng.integers(0, 256, (8 * clients, 4, 4, 1), dtype=np.uint8),
        "y": rng.integers(0, 3, 8 * clients).astype(np.int32),
    }


def build(rng, *, adapter, codec, learning_rate, clients=4, columns=None, uplink=None, **settings):
    """Equal clients of eight images each, a 16-6-3 network, full participation, `settings` of fedavg."""
    columns = images(rng, clients) if columns is None else columns
    owned = data.FederatedData.from_owners(
        columns, np.repeat(np.arange(clients), len(columns["y"]) // clients), clients
    )
    model = adapters.inputs(adapter(models.mlp((6,), num_classes=3)), 0.5, 0.3)
    local = local_training(model, optax.sgd(learning_rate), data.batch_plan(4, epochs=2))
    return simulate(
        algorithms.fedavg(local, **settings),
        owned,
        cohort_size=clients,
        uplink=(uplink or codec)(),
        downlink=codec(),
        executor=executors.loop(),
    )


def params_after(sim, rounds):
    state = sim.init()
    yield jax.device_get(sim.variables(state).params)
    for _ in range(rounds):
        state, _ = sim.run_round(state)
        yield jax.device_get(sim.variables(state).params)


def test_without_learning_the_model_goes_onto_the_grid_once_and_then_stays(rng):
    """Random rounding is unbiased, but what lies on the grid of its clip must not move at all."""
    sim = build(rng, adapter=adapters.qat, codec=codecs.fp8, learning_rate=0.0)
    start, first, second, third = params_after(sim, 3)
    moved = 0
    for layer in start:
        alpha = float(start[layer]["kernel_clip"])
        step = np.maximum(2.0**-3 * np.abs(start[layer]["kernel"]), alpha * 2.0**-17 / 1.75)
        assert np.all(np.abs(first[layer]["kernel"] - start[layer]["kernel"]) <= step * (1 + 2.0**-20))
        moved += np.sum(first[layer]["kernel"] != start[layer]["kernel"])
    assert moved > 50
    chex.assert_trees_all_equal(first, second, third)


def test_the_average_never_leaves_the_average_clip(rng):
    """|mean of decoded weights| <= mean of clips, so the next download clips nothing."""
    sim = build(rng, adapter=adapters.qat, codec=codecs.fp8, learning_rate=0.3)
    _, *trained = params_after(sim, 4)
    for params in trained:
        for layer in params.values():
            assert np.abs(layer["kernel"]).max() <= layer["kernel_clip"] * (1 + ROUNDING)


def test_with_quantizers_switched_off_it_is_fedavg_bit_for_bit(rng):
    off = lambda model: adapters.qat(model, weights=False, activations=False, gradients=None)
    seed = rng.integers(2**31)
    quiet, plain = (
        list(params_after(build(np.random.default_rng(seed), adapter=a, codec=codecs.none, learning_rate=0.1), 3))
        for a in (off, adapters.none)
    )
    chex.assert_trees_all_equal(quiet, plain)


@pytest.mark.parametrize("codec", [codecs.none, codecs.fp8])
def test_a_round_of_learning_lowers_the_training_loss(rng, codec):
    sim = build(rng, adapter=adapters.qat, codec=codec, learning_rate=0.2)
    state, losses = sim.init(), []
    for _ in range(15):
        state, metrics = sim.run_round(state)
        losses.append(metrics["train_loss"])
    assert losses[-1] < 0.8 * losses[0]


# What is logged.


def run(sim, rounds):
    """(state, metrics of each round)."""
    state, lines = sim.init(), []
    for _ in range(rounds):
        state, metrics = sim.run_round(state)
        lines.append(metrics)
    return state, lines


def test_rounds_log_what_quantization_did_to_both_messages(rng):
    """The download of plain UQ is never clipped; on the way up some weights have outgrown their learned clips."""
    sim = build(rng, adapter=adapters.qat, codec=codecs.fp8, learning_rate=0.3)
    state, lines = run(sim, 6)
    for metrics in lines:
        assert metrics["downlink_clipped_fraction"] == 0
        assert 0 <= metrics["uplink_clipped_fraction"] < 0.2
        assert LEAST < metrics["downlink_quantization_error"] < MOST
        assert metrics["uplink_quantization_error"] > LEAST  # clipping comes on top
    assert any(metrics["uplink_clipped_fraction"] > 0 for metrics in lines)  # nothing pulls such weights back
    evaluated = sim.evaluate(state, images(rng))
    params = sim.variables(state).params
    expected = {f"clip/{n}/{c}": float(params[n][f"{c}_clip"]) for n in params for c in ("kernel", "input")}
    assert len(expected) == 4
    assert {name: x for name, x in evaluated.items() if name.startswith("clip/")} == expected


@pytest.mark.parametrize("clip", ["max", "raised"])
def test_clips_of_the_largest_magnitude_clip_nothing_on_the_way_up(rng, clip):
    uplink = functools.partial(codecs.fp8, clip=clip)
    sim = build(rng, adapter=adapters.qat, codec=codecs.fp8, learning_rate=0.3, uplink=uplink)
    for metrics in run(sim, 4)[1]:
        assert metrics["uplink_clipped_fraction"] == 0
        assert LEAST < metrics["uplink_quantization_error"] < MOST


# Clients that diverge.


def with_nan(rng, bad, clients=4, rows=100):
    """A simulation of float rows, one of which becomes NaN in each bad client, between those that calibrate the clips.

    It does when the rows were checked: a simulation takes none that are not finite.
    """
    columns = {
        "x": rng.uniform(size=(rows * clients, 4, 4, 1)).astype(np.float32),
        "y": rng.integers(0, 3, rows * clients).astype(np.int32),
    }
    sim = build(rng, adapter=adapters.qat, codec=codecs.fp8, learning_rate=0.1, columns=columns)
    calibration = np.linspace(0, rows * clients - 1, 256).astype(int)
    for client in bad:
        free = np.setdiff1d(np.arange(client * rows, (client + 1) * rows), calibration)
        columns["x"][free[0], 0, 0, 0] = np.nan
    return sim


def test_a_client_whose_weights_become_nan_is_left_out_and_nothing_else_suffers(rng):
    """Its own errors, which are NaN, are not in what is measured either."""
    sim = with_nan(rng, bad=[2])
    state, lines = run(sim, 2)
    for metrics in lines:
        assert (metrics["excluded"], metrics["clients"], metrics.pop("excluded_clients")) == (1, 3, [2])
        assert all(math.isfinite(x) for x in metrics.values())
        assert metrics["uplink_quantization_error"] > LEAST
        assert metrics["downlink_clipped_fraction"] == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(sim.variables(state).params)))
    assert lines[-1]["uplink_bytes"] == lines[-1]["downlink_bytes"]  # what was sent was sent


def test_a_round_without_a_usable_client_logs_nothing_of_the_uplink_and_keeps_the_model(rng):
    """Nobody trained, so the training loss is no number; what was measured on the way down is."""
    sim = with_nan(rng, range(4))
    before = sim.init()
    state, metrics = sim.run_round(before)
    assert (metrics["excluded"], metrics["clients"], metrics.pop("excluded_clients")) == (4, 0, [0, 1, 2, 3])
    assert not any("uplink_" in name and name != "uplink_bytes" for name in metrics)
    assert metrics["downlink_clipped_fraction"] == 0 < metrics["downlink_quantization_error"]
    assert all(math.isfinite(x) for name, x in metrics.items() if not name.startswith("train_"))
    for a, b in zip(*(jax.tree.leaves(sim.variables(s).params) for s in (before, state)), strict=True):
        np.testing.assert_array_equal(a, b)


# UQ+.


def remembering():
    """FP8 messages that leave the clips last sent in the client's state."""
    plain = codecs.fp8()

    def init(tree):
        return {name: jnp.float32(0) for name in tree["params"]}

    def encode(key, state, tree):
        message, _ = plain.encode(key, (), tree)
        return message, {name: node["kernel_clip"] for name, node in message["params"].items()}

    return plain._replace(init=init, encode=encode)


def test_uq_plus_sends_what_uq_sends_and_takes_its_clips_from_between_the_clients(rng):
    settings = {"adapter": adapters.qat, "codec": codecs.fp8, "learning_rate": 0.3}
    seed = rng.integers(2**31)
    refine = refinements.uq_plus(points=5)
    sim = build(np.random.default_rng(seed), refine=refine, uplink=remembering, **settings)
    plain = build(np.random.default_rng(seed), **settings)
    state, average = (s.run_round(s.init())[0] for s in (sim, plain))
    # Both start from the same model, so the clients send the same; what the servers make of it may differ in the clips.
    new, mean = (jax.device_get(s.variables(t).params) for s, t in ((sim, state), (plain, average)))
    for name, sent in jax.device_get(state.clients.arrays()["uplink"]["model"]).items():
        assert sent.min() < sent.max()
        assert mean[name]["kernel_clip"] == pytest.approx(sent.mean(), rel=ROUNDING)
        assert sent.min() * (1 - ROUNDING) <= new[name]["kernel_clip"] <= sent.max() * (1 + ROUNDING)
        np.testing.assert_array_equal(new[name]["kernel"], mean[name]["kernel"])
    assert any(new[name]["kernel_clip"] != mean[name]["kernel_clip"] for name in new)
    for _ in range(2):
        state, metrics = sim.run_round(state)
        average, expected = plain.run_round(average)
        for total in ("uplink_bytes", "downlink_bytes"):
            assert metrics[total] == expected[total]
        assert 0 < metrics["refine_error_after"] <= metrics["refine_error_before"] < MOST


def test_without_refinement_fedavg_is_plain_bit_for_bit(rng):
    settings = {"adapter": adapters.qat, "codec": codecs.fp8, "learning_rate": 0.3}
    seed = rng.integers(2**31)
    plain, named = (
        list(params_after(build(np.random.default_rng(seed), **settings, **more), 2))
        for more in ({}, {"refine": refinements.none()})
    )
    chex.assert_trees_all_equal(plain, named)


def test_refining_needs_the_clients_clips_and_so_their_parameters(rng):
    with pytest.raises(ValueError, match=r"refine.*payload='params'"):
        build(
            rng,
            adapter=adapters.qat,
            codec=codecs.fp8,
            learning_rate=0.1,
            payload="update",
            refine=refinements.uq_plus(points=3),
        )
