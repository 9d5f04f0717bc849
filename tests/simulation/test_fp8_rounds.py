"""Whole rounds of FP8FedAvg-UQ: what quantization does, and does not do, to the model."""

import jax
import numpy as np
import optax
import pytest

from fedjax8 import adapters, algorithms, codecs, cohorts, data, local_training, models, simulate


def build(rng, *, adapter, codec, learning_rate, clients=4):
    """Equal clients of eight images each, a 16-6-3 network, full participation."""
    columns = {
        "x": rng.integers(0, 256, (8 * clients, 4, 4, 1), dtype=np.uint8),
        "y": rng.integers(0, 3, 8 * clients).astype(np.int32),
    }
    owned = data.FederatedData.from_owners(columns, np.repeat(np.arange(clients), 8), clients)
    model = adapters.inputs(adapter(models.mlp((6,), num_classes=3)), 0.5, 0.3)
    local = local_training(model, optax.sgd(learning_rate), data.batch_plan(4, epochs=2))
    return simulate(
        model,
        algorithms.fedavg(local),
        owned,
        cohort_size=clients,
        uplink=codec(),
        downlink=codec(),
        execution=cohorts.loop(),
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
        step = np.maximum(2.0**-3 * np.abs(start[layer]["kernel"]), alpha * 2.0**-17 / 1.875)
        assert np.all(np.abs(first[layer]["kernel"] - start[layer]["kernel"]) <= step * (1 + 2.0**-20))
        moved += np.sum(first[layer]["kernel"] != start[layer]["kernel"])
    assert moved > 50
    for later in (second, third):
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(later), strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_average_never_leaves_the_average_clip(rng):
    """|mean of decoded weights| <= mean of clips, so the next download clips nothing."""
    sim = build(rng, adapter=adapters.qat, codec=codecs.fp8, learning_rate=0.3)
    _, *trained = params_after(sim, 4)
    for params in trained:
        for layer in params.values():
            # One part in 2**22 for the float32 sums of four clients.
            assert np.abs(layer["kernel"]).max() <= layer["kernel_clip"] * (1 + 2.0**-22)


def test_with_quantizers_switched_off_it_is_fedavg_bit_for_bit(rng):
    off = lambda model: adapters.qat(model, weights=False, activations=False)
    seed = rng.integers(2**31)
    quiet, plain = (
        list(params_after(build(np.random.default_rng(seed), adapter=a, codec=codecs.none, learning_rate=0.1), 3))
        for a in (off, adapters.none)
    )
    for a, b in zip(jax.tree.leaves(quiet), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("codec", [codecs.none, codecs.fp8])
def test_a_round_of_learning_lowers_the_training_loss(rng, codec):
    sim = build(rng, adapter=adapters.qat, codec=codec, learning_rate=0.2)
    state, losses = sim.init(), []
    for _ in range(15):
        state, metrics = sim.run_round(state)
        losses.append(metrics["train_loss"])
    assert losses[-1] < 0.8 * losses[0]
