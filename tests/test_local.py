"""Local training composed of others: pulled, scheduled, adjusted, with an optimizer's state that stays."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8 import trees
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fda_opt import fda_opt
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.fedcode import fedcode
from fedjax8.algorithms.fedopt import fedopt
from fedjax8.algorithms.parts import ClientOutput, ServerOutput, from_parts
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.data.batches import batch_plan
from fedjax8.errors import UserError
from fedjax8.local import local_training, proximal, scheduled
from fedjax8.privacy.dp_sgd import dp_sgd
from fedjax8.privacy.noisy_sgd import noisy_sgd
from fedjax8.types import ClientRows, Pool, Variables

FLOAT32 = 2e-6  # a few units in the last place near 1
COSINE = optax.cosine_decay_schedule(0.1, decay_steps=4)


def rows_of(b, size=None):
    """A client's rows, of curvature 1 and with these optima."""
    columns = {"a": jnp.ones(len(b)), "b": jnp.float32(b)}
    return ClientRows(Pool(columns, None), jnp.int32(0), jnp.int32(len(b) if size is None else size))


def at(x):
    return Variables({"x": jnp.float32(x)}, {})


def ending(toys, make, data, rounds, **settings):
    """The global x after so many rounds of one call."""
    sim = toys.build(make, data, **settings)
    return float(sim.variables(sim.run_rounds(sim.init(), rounds)[0]).params["x"])


# proximal


def test_the_pull_combines_with_an_adaptive_server(toys):
    """FedAdam over pulled clients of Q2, three steps a round, in NumPy."""
    mu, a, b, x = 0.5, np.array([1.0, 4.0]), np.array([0.0, 1.0]), 0.0
    first, second = 0.0, 1e-6
    for _ in range(3):
        y = np.full(2, x)
        for _ in range(3):
            y -= 0.1 * (a * (y - b) + mu * (y - x))
        update = np.mean(y - x)
        first, second = 0.9 * first + 0.1 * update, 0.99 * second + 0.01 * update**2
        x += 0.1 * first / (math.sqrt(second) + 1e-3)
    assert ending(toys, lambda local: fedopt(proximal(local, mu)), toys.q2(), 3, steps=3) == pytest.approx(x, abs=1e-5)


@pytest.mark.slow
def test_pulled_scaffold_still_finds_the_optimum(toys):
    """Where all clients stay at x nothing pulls, so that the limit is SCAFFOLD's."""
    make = lambda local: scaffold(proximal(local, 1.0), toys.LEARNING_RATE)
    assert ending(toys, make, toys.q2(), 200, steps=5) == pytest.approx(0.8, abs=1e-5)


def test_workers_of_fda_are_held_near_the_last_common_model(toys):
    """Without a synchronization they settle at (a b + mu x_0) / (a + mu)."""
    mu, start = 2.0, 0.25
    a, b = np.array([1.0, 4.0]), np.array([0.0, 1.0])
    apart = lambda local: fda(proximal(local, mu), math.inf)
    found = ending(toys, apart, toys.q2(), 1, start=start, steps=200)
    assert found == pytest.approx(np.mean((a * b + mu * start) / (a + mu)), abs=FLOAT32)


@pytest.mark.slow
def test_nothing_pulls_workers_of_fda_that_synchronize_at_every_step(toys):
    start, a = 0.25, np.array([1.0, 4.0])
    together = lambda local: fda(proximal(local, 2.0), 0.0)
    x = 0.8 + (start - 0.8) * (1 - 0.1 * np.mean(a)) ** 4
    assert ending(toys, together, toys.q2(), 1, start=start, steps=4) == pytest.approx(x, abs=FLOAT32)


def test_pulls_add_up_and_none_is_the_same_training(toys):
    local = local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(1, steps=1))
    assert proximal(local, 0.0) is local
    assert proximal(proximal(local, 0.5), 0.25).pull == 0.75
    with pytest.raises(ValueError, match="from 0 up"):
        proximal(local, -0.1)


# adjust, gradient, mean_loss


def test_a_step_can_be_taken_again_at_another_model_with_the_same_batch_and_draws(toys):
    """Noise and rows are those of the step: its gradient minus the gradient where it was taken is exactly nothing."""
    plan = batch_plan(2, epochs=2)
    local = local_training(toys.quadratic(), optax.sgd(0.1), plan, noisy_sgd())
    rows = rows_of([1.0, 2.0, 30.0, 4.0, 5.0])

    def moved(shift):
        def adjust(gradients, params, batch, key):
            again = local.gradient(at(0.0)._replace(params=trees.add(params, {"x": shift})), rows, batch, key)
            return trees.subtract(gradients, again)

        return float(local.train(at(0.5), rows, jax.random.key(0), adjust=adjust).variables.params["x"])

    assert moved(0.0) == 0.5
    assert moved(1.0) == pytest.approx(0.5 + 6 * 0.1, abs=1e-5)  # the gradients differ by the shift, noise and rows not


def test_the_mean_loss_weighs_rows_alike(toys):
    local = local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(2, epochs=1))
    b = [1.0, 2.0, 30.0, 4.0, 5.0]
    expected = np.mean(0.5 * (0.5 - np.array(b)) ** 2)
    assert float(local.mean_loss(at(0.5), rows_of(b))) == pytest.approx(expected, rel=1e-6)
    assert float(local.mean_loss(at(0.5), rows_of(b, size=0))) == 0.0


def test_beside_private_gradients_nothing_else_may_read_rows(toys):
    local = local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(1, steps=1), dp_sgd(noise_multiplier=1.0))
    rows, key = rows_of([1.0, 2.0]), jax.random.key(0)
    readers = {
        "reads the batch": lambda: local.train(at(0.0), rows, key, adjust=lambda g, p, batch, k: {"x": batch["b"][0]}),
        "takes a gradient of its own": lambda: local.gradient(at(0.0), rows, {}, key),
        "reads the loss": lambda: local.mean_loss(at(0.0), rows),
        "steps as it goes": lambda: proximal(local, 1.0).advance(local.start(at(0.0), rows), rows, key, 0, 1),
    }
    for message, read in readers.items():
        with pytest.raises(UserError, match=message):
            jax.eval_shape(read)
    pulled = jax.eval_shape(lambda: proximal(local, 0.1).train(at(0.0), rows, key))
    assert pulled.variables.params["x"].shape == ()


# scheduled


def test_a_schedule_counts_rounds_whatever_a_call_has(toys):
    """One client at 0 that is drawn to 1: 1 - x shrinks by (1 - rate)^2 in a round of two steps."""
    sim = toys.build(
        lambda local: fedavg(scheduled(local, COSINE)), toys.clients([1.0], [1.0]), steps=2, optimizer=optax.sgd(1.0)
    )
    state, rest, done = sim.init(), 1.0, 0
    for per_call in (1, 3):
        state, _ = sim.run_rounds(state, per_call)
        done += per_call
        for r in range(done - per_call, done):
            rest *= (1 - 0.05 * (1 + math.cos(math.pi * r / 4))) ** 2
        assert 1 - float(sim.variables(state).params["x"]) == pytest.approx(rest, abs=FLOAT32)


def test_a_constant_schedule_is_the_rate_itself_bit_for_bit(toys):
    whole, tenth = (local_training(toys.quadratic(), optax.sgd(r), batch_plan(2, steps=3)) for r in (1.0, 0.1))
    ends = [
        local.train(at(0.3), rows_of([1.0, 2.0, 30.0]), jax.random.key(0)).variables.params["x"]
        for local in (scheduled(whole, optax.constant_schedule(0.1)), tenth)
    ]
    assert float(ends[0]) == float(ends[1]) != 0.3


def test_schedules_multiply_and_tell_their_rate(toys):
    local = local_training(toys.quadratic(), optax.sgd(1.0), batch_plan(1, steps=1))
    twice = scheduled(scheduled(local, COSINE), lambda number: 0.5)
    assert float(twice.rate(rows_of([1.0]).pool._replace(round_number=jnp.int32(2)))) == pytest.approx(0.5 * 0.05)
    rows = rows_of([1.0])
    rows = rows._replace(pool=rows.pool._replace(round_number=jnp.int32(2)))
    moved = twice.train(at(0.0), rows, jax.random.key(0)).variables.params["x"]
    assert float(moved) == pytest.approx(0.025, abs=FLOAT32)


@pytest.mark.slow
def test_a_rate_of_zero_moves_nothing_and_leaves_the_variates_of_scaffold_as_they_are(toys):
    off = lambda local: scaffold(scheduled(local, lambda number: jnp.where(number < 2, 1.0, 0.0)), toys.LEARNING_RATE)
    sim = toys.build(off, toys.q2(), steps=2)
    state, before = sim.run_rounds(sim.init(), 2)[0], None
    before = jax.tree.map(np.array, (sim.variables(state), state.clients.arrays()["algorithm"]))
    state, lines = sim.run_rounds(state, 1)
    after = sim.variables(state), state.clients.arrays()["algorithm"]
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert lines[0]["clients"] == 2 and np.all(before[1]["memory"]["x"] != 0)


RESTARTING = [
    optax.sgd(COSINE),
    optax.chain(optax.clip(1.0), optax.adam(COSINE)),
    optax.inject_hyperparams(optax.sgd)(learning_rate=COSINE),
]


@pytest.mark.parametrize("optimizer", RESTARTING)
def test_a_schedule_that_every_round_would_restart_is_refused(toys, optimizer):
    for make in (fedavg, functools.partial(fda, optimizer_state="reset"), fda_opt):
        if make is not fedavg and optimizer is not RESTARTING[0]:
            continue
        sim = toys.build(make, toys.q2(), steps=1, optimizer=optimizer)
        with pytest.raises(UserError, match="would restart every round; count rounds instead: scheduled"):
            sim.init()


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)])
def test_counts_that_correct_moments_and_injected_numbers_are_no_schedule(toys, optimizer):
    sim = toys.build(fedavg, toys.q2(), steps=1, optimizer=optimizer)
    assert sim.discover()


# keep_optimizer


def kept(make, optimizer, plan=None):
    """`make` over clients of the same model that keep this optimizer's state."""
    return lambda local: make(local_training(local.model, optimizer, plan or local.plan, keep_optimizer=True))


def test_each_client_keeps_its_own_momentum_from_its_last_round(toys):
    """One of two clients a round, two steps each; in NumPy with the cohorts that were drawn."""
    a, b, x, momentum = [1.0, 4.0], [0.0, 1.0], 0.5, [0.0, 0.0]
    make = kept(fedavg, optax.sgd(0.1, momentum=0.5))
    sim = toys.build(make, toys.q2(), start=x, steps=2, cohort_size=1, seed=1)
    state, fresh, drawn = sim.init(), x, []
    for _ in range(5):
        before = state.clients.arrays()["algorithm"]["optimizer"]
        state, _ = sim.run_rounds(state, 1)
        after = state.clients.arrays()["algorithm"]["optimizer"]
        (i,) = [i for i in (0, 1) if jax.tree.leaves(before)[0][i] != jax.tree.leaves(after)[0][i]]
        drawn.append(i)
        own = 0.0
        for _ in range(2):
            momentum[i] = 0.5 * momentum[i] + a[i] * (x - b[i])
            own = 0.5 * own + a[i] * (fresh - b[i])
            x, fresh = x - 0.1 * momentum[i], fresh - 0.1 * own
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, abs=FLOAT32)
        np.testing.assert_allclose(jax.tree.leaves(after)[0], momentum, atol=10 * FLOAT32)
    assert set(drawn) == {0, 1} and abs(x - fresh) > 0.01  # with a fresh state it would be elsewhere


@pytest.mark.slow
def test_a_kept_state_may_count_the_steps_of_a_schedule(toys):
    """Two steps a round of one client, at rates 0.2, 0.1, 0.05, ...: the count goes on in the next round."""
    halved = optax.exponential_decay(0.2, 1, 0.5)
    found = ending(toys, kept(fedavg, optax.sgd(halved)), toys.clients([1.0], [1.0]), 2, steps=2)
    assert 1 - found == pytest.approx(math.prod(1 - 0.2 * 0.5**step for step in range(4)), abs=FLOAT32)


def test_keeping_is_refused_where_it_would_do_nothing(toys):
    momentum = optax.sgd(0.1, momentum=0.9)

    def forgetful(local):
        def client(start, extra, memory, rows, key, round_number):
            out = local.train(start, rows, key)
            return ClientOutput({"params": out.variables.params}, jnp.float32(1), out.variables, (), {})

        return from_parts(local, client=client, server=lambda state, mean, key: ServerOutput(mean.tree["params"]))

    cases = {
        "has no state": kept(fedavg, optax.sgd(0.1)),
        "no place to keep it": kept(fedcode, momentum),
        "ClientOutput.optimizer": kept(forgetful, momentum),
        "begins every round with a new state": kept(fda_opt, momentum),
        "optimizer_state='reset' already decides": kept(functools.partial(fda, optimizer_state="reset"), momentum),
    }
    for message, make in cases.items():
        with pytest.raises(UserError, match=f"keep_optimizer=True changes nothing.*{message}"):
            toys.build(make, toys.q2(), steps=1).init()
