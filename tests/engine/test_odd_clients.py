"""Clients as real data has them: empty ones, ones with one example, ones that lack classes."""

import jax
import numpy as np
import optax

from fedjax8 import adapters, codecs, models
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.local import local_training

SIZES = (0, 1, 2, 17, 0, 5)


def test_a_run_in_8_bits_goes_through_with_finite_numbers(rng):
    """Six of ten classes are nowhere, one client has a single class, and batches are larger than most clients."""
    owners = np.repeat(np.arange(len(SIZES)), SIZES)
    columns = {
        "x": rng.normal(size=(len(owners), 6)).astype(np.float32),
        "y": np.where(owners == 3, 0, rng.integers(0, 4, len(owners))).astype(np.int32),
    }
    data = FederatedData.from_owners(columns, owners, len(SIZES))
    model, plan = adapters.qat(models.mlp((5,), num_classes=10)), batch_plan(4, epochs=2)
    simulation = simulate(
        fedavg(local_training(model, optax.sgd(0.1), plan)),
        data,
        cohort_size=len(SIZES),
        uplink=codecs.fp8(),
        downlink=codecs.fp8(),
    )
    state, lines = simulation.run_rounds(simulation.init(), 3)
    for line in lines:
        assert (line["clients"], line["excluded"]) == (6, 0)
        assert all(np.all(np.isfinite(value)) for value in line.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.server))
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]
    assert np.isfinite(simulation.evaluate(state, columns)["test_loss"])
