"""An attack on a canary: what it proves of epsilon stays below what is stated, and not so without the noise.

One client of eight rows takes two steps. Seven rows have no gradient; the canary's is clipped to C. The attacker sees
the final model and guesses whether the canary counted. A test of power p at false alarm f proves epsilon >= log((p -
delta) / f); p and f are bounded by Clopper and Pearson at 97.5 % each, from other runs than those that chose the
threshold.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from fedjax8 import privacy
from fedjax8.data.batches import batch_plan
from fedjax8.local import local_training
from fedjax8.privacy.accounting import epsilon, rate
from fedjax8.types import ClientRows, Pool, Variables

RUNS, DELTA, STEPS, RATE = 20_000, 1e-3, 2, 0.5
NOISE = 2.0


@functools.cache
def models(toys, noise):
    """Final parameters `[2, RUNS]`: without the canary, and with it."""
    local = local_training(
        toys.quadratic(), optax.sgd(1.0), batch_plan(4, steps=STEPS), privacy.dp_sgd(1.0, noise, microbatch=8)
    )

    def run(key, canary):
        columns = {"a": jnp.zeros(8).at[5].set(canary), "b": jnp.full(8, 1e6)}
        rows = ClientRows(Pool(columns, None), jnp.int32(0), jnp.int32(8))
        return local.train(Variables({"x": jnp.float32(0)}, {}), rows, key).variables.params["x"]

    keys = jax.random.split(jax.random.key(0), (2, RUNS))
    return np.asarray(jax.jit(jax.vmap(jax.vmap(run, (0, None))))(keys, jnp.array([0.0, 1.0])))


def proven(without, with_):
    """The largest epsilon that the attack proves, at 95 % confidence."""

    def bound(threshold, without, with_):
        hits, alarms, n = np.sum(with_ > threshold), np.sum(without > threshold), len(with_)
        power = stats.beta.ppf(0.025, hits, n - hits + 1) if hits else 0.0
        alarm = stats.beta.ppf(0.975, alarms + 1, n - alarms) if alarms < n else 1.0
        return np.log(max(power - DELTA, 1e-12) / alarm)

    half = RUNS // 2
    thresholds = np.quantile(with_[:half], np.linspace(0.02, 0.98, 49))
    best = max(thresholds, key=lambda t: bound(t, without[:half], with_[:half]))
    return bound(best, without[half:], with_[half:])


STATED = {
    a: epsilon(NOISE, DELTA, steps=STEPS, sampling=rate(RATE), accountant=a) for a in privacy.accounting.ACCOUNTANTS
}


def test_the_canary_is_hidden_as_well_as_stated(toys):
    found = proven(*models(toys, NOISE))
    assert 0.3 * STATED["pld"] < found < STATED["pld"] <= STATED["rdp"]  # and the attack is worth something


def test_the_canary_is_found_when_the_noise_is_missing(toys):
    assert proven(*models(toys, 0.01)) > 2 * STATED["rdp"]


def test_less_noise_lets_more_be_proven(toys):
    assert proven(*models(toys, NOISE / 4)) > 2 * proven(*models(toys, NOISE))
