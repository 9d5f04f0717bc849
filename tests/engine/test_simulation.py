"""Whole rounds: reproducible, resumable, independent of how they are computed; model state by choice."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.executors.pmap import pmap
from fedjax8.local import local_training
from fedjax8.types import Variables


def run(sim, rounds, state=None):
    """State and metrics after some rounds."""
    state = sim.init() if state is None else state
    lines = []
    for _ in range(rounds):
        state, metrics = sim.run_round(state)
        lines.append(metrics)
    return state, lines


def leaves(state):
    """All arrays of a state."""
    return jax.tree.leaves((state.server, state.down_states, state.clients.arrays()))


@pytest.fixture
def data(toys):
    return toys.clients([1.0, 4.0, 2.0, 3.0, 0.5, 1.5], [0.0, 1.0, -1.0, 2.0, 3.0, 1.0], [1, 3, 2, 5, 4, 2])


def test_the_same_seed_gives_the_same_run_bit_for_bit(toys, data):
    first, second = (
        run(toys.build(fedavg, data, cohort_size=3, epochs=2, seed=5, executor=pmap()), 4) for _ in range(2)
    )
    assert first[1] == second[1]
    for a, b in zip(leaves(first[0]), leaves(second[0]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_another_seed_gives_another_run(toys, data):
    first, second = (run(toys.build(fedavg, data, cohort_size=3, epochs=2, seed=s), 3)[1] for s in (0, 1))
    assert first != second


@pytest.mark.parametrize("executor", [loop, pmap])
def test_a_state_taken_through_numpy_goes_on_identically(toys, data, executor):
    make = functools.partial(scaffold, learning_rate=toys.LEARNING_RATE)
    build = functools.partial(toys.build, make, data, cohort_size=3, epochs=2)
    unbroken, lines = run(build(executor=executor()), 6)
    half, _ = run(build(executor=executor()), 3)
    sim = build(executor=executor())
    saved = jax.device_get((half.server, half.down_states, half.clients.arrays()))
    store = sim.init().clients.with_arrays(saved[2])
    restored = sim.place(half._replace(server=saved[0], down_states=saved[1], clients=store))
    resumed, rest = run(sim, 3, restored)
    assert rest == lines[3:]
    for a, b in zip(leaves(resumed), leaves(unbroken), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_round_is_compiled_once(toys, data):
    compiled = []
    executor = loop()

    def counting(f):
        def traced(*args):
            compiled.append(f)
            return f(*args)

        return executor.compile(traced)

    sim = toys.build(fedavg, data, cohort_size=3, epochs=2, executor=executor._replace(compile=counting))
    run(sim, 5)
    assert len(compiled) == 1


def with_counter(toys):
    """The quadratic with a state that counts the training batches it saw."""
    model = toys.quadratic()

    def apply(variables, batch, *, key=None, train=False, multiply=None):
        outputs, _ = model.apply(variables, batch)
        return outputs, {"seen": variables.state["seen"] + 1.0 if train else variables.state["seen"]}

    return model._replace(
        init=lambda key, batch: Variables({"x": jnp.float32(0)}, {"seen": jnp.float32(0)}), apply=apply
    )


@pytest.mark.parametrize(
    ("policy", "server", "own", "message_bytes"),
    [
        ("average", 2 * (1 + 3 + 2) / 3, None, 8),  # after round 1 the mean of 1, 3, 2 batches; round 2 adds the same
        ("local", 0.0, [2.0, 6.0, 4.0], 4),
        ("fixed", 0.0, None, 4),
    ],
)
def test_model_state_is_averaged_kept_or_fixed_by_choice(toys, policy, server, own, message_bytes):
    data = toys.clients([1.0, 1.0, 1.0], [0.0, 1.0, 2.0], [1, 3, 2])
    model = with_counter(toys)
    local = local_training(model, optax.sgd(0.1), batch_plan(1, epochs=1))
    algorithm = fedavg(local, weighting="uniform", model_state=policy)
    sim = simulate(algorithm, data, cohort_size=3, uplink=none(), downlink=none(), executor=loop())
    state, lines = run(sim, 2)
    assert float(sim.variables(state).state["seen"]) == pytest.approx(server, rel=1e-6)
    if own is not None:
        np.testing.assert_array_equal(state.clients.arrays()["algorithm"]["model_state"]["seen"], own)
    assert lines[-1]["uplink_bytes"] == lines[-1]["downlink_bytes"] == 2 * 3 * message_bytes


@pytest.mark.parametrize("cohort_size", [0, 7])
def test_a_cohort_larger_than_the_population_is_a_user_error(toys, data, cohort_size):
    with pytest.raises(UserError, match="between 1 and the number of clients, 6"):
        simulate(
            fedavg(local_training(toys.quadratic(), optax.sgd(0.1), batch_plan(1, epochs=1))),
            data,
            cohort_size=cohort_size,
            uplink=none(),
            downlink=none(),
        )


def test_evaluation_equals_numpy_for_any_number_of_rows_and_devices(toys, data):
    for executor in (loop(), pmap()):
        sim = toys.build(fedavg, data, start=3.0, epochs=1, executor=executor)
        a, b = np.float32([1, 2, 3, 4, 5]), np.float32([0, 1, 0, 2, 1])
        got = sim.evaluate(sim.init(), {"a": a, "b": b})
        assert got == {"test_loss": pytest.approx(np.mean(0.5 * a * (3.0 - b) ** 2), rel=1e-6)}
