"""The curriculum by quantiles: its ends are FedAvg, its masks remove examples, its limits are pooled quantiles."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.curriculum import admitted, bin_of, curriculum, limit_of
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.privacy.dp_sgd import dp_sgd

FLOAT32 = 2e-6
ROWS = ([1.0, 2.0, 9.0], [0.5, -4.0], [3.0, -8.0, 1.5, 5.0])
EASY = ([1.0, 2.0], [0.5], [3.0, 1.5])
"""Those of the five smallest losses x^2 / 2 among nine."""


def test_a_single_phase_is_fedavg_bit_for_bit(toys):
    make = functools.partial(curriculum, phases=1)
    got, want = (
        toys.trajectory(toys.build(make, toys.with_rows(ROWS), epochs=2, batch_size=2), 4) for make in (make, fedavg)
    )
    assert got == want


@pytest.mark.parametrize("length", [{"epochs": 2}, {"steps": 3}])
def test_examples_above_the_limit_count_as_if_they_were_not_there(toys, length):
    """Half of nine examples is the five easiest ones; full batches, three clients with 2, 1 and 2 of them."""
    make = functools.partial(curriculum, phases=2, rounds_per_phase=1)
    sim = toys.build(make, toys.with_rows(ROWS), batch_size=4, **length)
    state, _ = sim.run_round(sim.init())
    alone = toys.build(fedavg, toys.with_rows(EASY), batch_size=4, **length)
    first = toys.trajectory(alone, 1)[0]
    assert float(sim.variables(state).params["x"]) == pytest.approx(first, abs=FLOAT32)
    # The second phase admits all nine.
    state, _ = sim.run_round(state)
    everything = toys.build(fedavg, toys.with_rows(ROWS), batch_size=4, start=first, **length)
    assert float(sim.variables(state).params["x"]) == pytest.approx(toys.trajectory(everything, 1)[0], abs=FLOAT32)


def test_only_histograms_travel_beside_the_models(toys):
    make = functools.partial(curriculum, phases=2, bins=10)
    sim = toys.build(make, toys.with_rows(ROWS), batch_size=4, steps=1)
    _, line = sim.run_round(sim.init())
    assert line["uplink_bytes"] == line["downlink_bytes"] == 3 * (4 + 40)


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.9])
def test_the_limit_of_merged_histograms_is_the_pooled_quantile_up_to_a_bin(share):
    rng = np.random.default_rng(1)
    clients = [rng.lognormal(mean, 1.0, n).astype(np.float32) for mean, n in ((-3, 200), (0, 31), (1, 500))]
    bins, smallest, largest = 64, 1e-4, 100.0
    histograms = [
        np.bincount(np.asarray(bin_of(jnp.asarray(x), bins, smallest, largest)), minlength=bins) for x in clients
    ]
    limit = int(limit_of(jnp.float32(np.mean(histograms, axis=0)), share))
    pooled = np.sort(np.concatenate(clients))
    quantile = pooled[int(np.ceil(share * len(pooled))) - 1]
    edges = np.geomspace(smallest, largest, bins + 1)
    assert edges[limit] * (1 - 1e-5) <= quantile <= edges[limit + 1] * (1 + 1e-5)


def test_losses_beyond_the_ends_are_in_the_last_bins():
    found = bin_of(jnp.float32([-1.0, 0.0, 1e-9, 1e9, np.inf, np.nan]), 8, 1e-3, 10.0)
    np.testing.assert_array_equal(found, [0, 0, 0, 7, 7, 7])


def test_a_histogram_that_cannot_be_one_does_not_shut_everybody_out():
    assert int(limit_of(jnp.float32([-5.0, 1.0, 2.0, -1.0]), 0.5)) == 2
    assert int(limit_of(jnp.float32([-5.0, 0.0, -2.0, -1.0]), 0.5)) == 3


def test_the_number_of_admitted_examples_is_exact_over_epochs_and_estimated_within_one():
    whole = batch_plan(4, epochs=3)
    assert float(admitted(whole, jnp.int32(10), jnp.int32(9), jnp.float32(3 * 7))) == 7
    part = batch_plan(4, steps=4)  # an epoch of 4 + 4 + 2 rows, and 4 more: of 14 seen 7 were used
    assert float(admitted(part, jnp.int32(10), jnp.int32(4), jnp.float32(7))) == 5
    assert float(admitted(part, jnp.int32(0), jnp.int32(0), jnp.float32(0))) == 0


def test_settings_that_cannot_be_meant_are_refused(toys):
    for settings in ({"phases": 0}, {"bins": 1}, {"smallest": 2.0, "largest": 1.0}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            toys.build(functools.partial(curriculum, **settings), toys.q2(), steps=1)


def test_it_is_refused_beside_private_steps_whose_rows_it_would_read(toys):
    make = functools.partial(curriculum, phases=2)
    with pytest.raises(UserError, match="the accounting of private gradients does not cover"):
        toys.build(make, toys.q2(), steps=1, gradient=dp_sgd(1.0, noise_multiplier=1.0)).discover()
