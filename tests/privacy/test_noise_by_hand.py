"""How much noise private algorithms add, and what it is calibrated for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms.dp_fedavg import dp_fedavg
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.engine.simulation import simulate
from fedjax8.executors.loop import loop
from fedjax8.local import local_training
from fedjax8.privacy import gaussian
from fedjax8.privacy.accounting import Facts
from fedjax8.privacy.dp_sgd import dp_sgd
from fedjax8.types import ClientRows, Model, Pool, Variables

D = 50_000


def still() -> Model:
    """D parameters whose gradient is zero, so that a round leaves the noise alone."""
    return Model(
        init=lambda key, batch: Variables({"w": jnp.zeros(D)}, {}),
        apply=lambda variables, batch, **_: (0.0 * jnp.sum(variables.params["w"]) * batch["a"], variables.state),
        loss=lambda outputs, batch: outputs,
        metrics=lambda outputs, batch: {},
    )


def test_with_a_quantile_updates_have_the_larger_noise_that_pays_for_the_bits(toys):
    """z = 1.5 and s_b = 0.9: z_d = (1.5^-2 - 1.8^-2)^(-1/2) = 2.714, and not 1.5, times S = 2 over 4 clients."""
    make = functools.partial(dp_fedavg, clip=2.0, noise_multiplier=1.5, quantile=0.5, bit_noise=0.9)
    local = local_training(still(), optax.sgd(1.0), batch_plan(1, epochs=1))
    sim = simulate(
        make(local),
        toys.clients([0.0] * 4, [1.0] * 4),
        cohort_size=4,
        uplink=none(),
        downlink=none(),
        executor=loop(),
    )
    state, _ = sim.run_round(sim.init())
    w = np.asarray(sim.variables(state).params["w"])
    update_noise = (1.5**-2 - 1.8**-2) ** -0.5
    assert w.std() == pytest.approx(update_noise * 2.0 / 4, rel=0.016)  # five standard errors of 50 000 values


def test_noise_is_calibrated_for_all_rounds_of_the_run(toys):
    """Two rounds: what they spend is the target, up to the search's step, and one round spends clearly less."""
    data = toys.clients([1.0] * 4, [1.0] * 4, [30] * 4)
    facts = Facts(data, 2, 2, 0, batch_plan(5, epochs=2))
    rule = dp_sgd(target_epsilon=3.0, facts=facts)
    assert rule.privacy(2)["epsilon"] <= 3.0
    assert rule.privacy(2)["epsilon"] == pytest.approx(3.0, rel=0.02)


def test_leaves_have_noise_of_their_own():
    """Two leaves of 20 000 values: deviation 3 each, and no correlation beyond five standard errors."""
    noised = gaussian.add_noise(jax.random.key(1), {"a": jnp.zeros(20_000), "b": jnp.ones(20_000)}, 3.0)
    a, b = np.asarray(noised["a"]), np.asarray(noised["b"]) - 1
    assert a.std() == pytest.approx(3.0, rel=5 / np.sqrt(2 * 20_000))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(20_000)


def test_a_private_step_has_noise_of_z_times_the_bound_over_the_batch():
    """z = 2, C = 0.5, a batch of 4 whose gradients are zero: a step of rate 1 has the deviation 2 x 0.5 / 4."""
    rule = dp_sgd(0.5, 2.0, sampling="shuffled")
    local = local_training(still(), optax.sgd(1.0), batch_plan(4, steps=1), rule)
    rows = ClientRows(Pool({"a": jnp.ones(4)}, None), jnp.int32(0), jnp.int32(4))
    start = Variables({"w": jnp.zeros(D)}, {})
    done = jax.jit(local.train)(start, rows, jax.random.key(3))
    assert np.asarray(done.variables.params["w"]).std() == pytest.approx(2 * 0.5 / 4, rel=0.016)
