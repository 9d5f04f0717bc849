"""Every adapter file, found by itself, on every one of its examples: what `types.Model` promises of its models."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8 import codecs, executors, trees
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.local import local_training, masked_mean
from fedjax8.lookup import component_names
from fedjax8.models.linen import from_linen

KEY = jax.random.key(7)
WITHOUT_EXAMPLES = {"pretrained"}
"""Adapters that need a file."""
CASES = {
    f"{name}-{index}": functools.partial(getattr(module, name), **settings)
    for name in component_names("fedjax8.adapters")
    for module in [importlib.import_module(f"fedjax8.adapters.{name}")]
    for index, settings in enumerate(module.EXAMPLES)
}


FIRST = [pytest.param(name, marks=[] if name.endswith("-0") else pytest.mark.slow) for name in CASES]
"""Each adapter; its other examples are in the slow tests."""


@pytest.fixture(scope="module", params=FIRST)
def name(request):
    return request.param


class Net(nn.Module):
    """A layer, its norm, and a head: cheaper to compile than a transformer."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x.reshape(len(x), -1))
        return nn.Dense(3, name="head")(nn.tanh(nn.LayerNorm(name="norm")(x)))


OF_TRANSFORMERS = ("prompt", "bottleneck", "lora")


@pytest.fixture(scope="module")
def model(name, tiny):
    return CASES[name](tiny if name.startswith(OF_TRANSFORMERS) else from_linen(Net()))


@pytest.fixture(scope="module")
def variables(model, tokens):
    return jax.jit(model.init)(KEY, tokens)


@pytest.fixture(scope="module")
def training(model):
    """`(variables, batch) -> ((mean loss, new state), gradients)` of a step, compiled."""

    def loss(params, variables, batch):
        outputs, state = model.apply(variables._replace(params=params), batch, key=KEY, train=True)
        return masked_mean(model.loss(outputs, batch), batch["mask"]), state

    return jax.jit(lambda variables, batch: jax.value_and_grad(loss, has_aux=True)(variables.params, variables, batch))


@pytest.fixture(scope="module")
def evaluated(model):
    """`(variables, batch) -> (outputs, state, outputs of each view)`, compiled."""

    def run(variables, batch):
        outputs, state = model.apply(variables, batch)
        return outputs, state, {view: apply(variables, batch)[0] for view, apply in model.views.items()}

    return jax.jit(run)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_adapters_are_found():
    assert {name.split("-")[0] for name in CASES} == set(component_names("fedjax8.adapters")) - WITHOUT_EXAMPLES


def test_each_parameter_is_trained_or_frozen_and_finite(variables):
    trained, frozen = (set(trees.named_leaves(tree)) for tree in (variables.params, variables.frozen))
    assert trained and not trained & frozen
    assert bool(trees.all_finite(variables))


def test_evaluation_draws_nothing_and_leaves_the_state(evaluated, variables, tokens):
    outputs, state, views = evaluated(variables, tokens)
    assert outputs.shape == (4, 3)
    equal(state, variables.state)
    for seen in views.values():
        assert seen.shape == outputs.shape and bool(trees.all_finite(seen))


def test_gradients_are_finite_and_reach_what_is_trained(training, variables, tokens):
    (loss, _), gradients = training(variables, tokens)
    assert np.isfinite(loss) and bool(trees.all_finite(gradients))
    assert jax.tree.structure(gradients) == jax.tree.structure(variables.params)
    assert any(np.any(x) for x in jax.tree.leaves(gradients))


def test_padding_changes_no_bit_of_loss_and_gradients(training, variables, tokens):
    short = tokens | {"mask": jnp.array([1.0, 1.0, 0.0, 0.0])}
    other = short | {"x": short["x"].at[2:].set(1e6), "y": short["y"].at[2:].set(1)}
    (loss, _), gradients = training(variables, short)
    (again, _), others = training(variables, other)
    equal(loss, again)
    equal(gradients, others)


def test_initial_parameters_are_feasible_and_projecting_twice_is_projecting_once(model, variables):
    once = model.project(jax.tree.map(lambda x: x - 3.0, variables.params))
    equal(model.project(variables.params), variables.params)
    equal(model.project(once), once)


def test_what_is_reported_are_finite_numbers(model, variables):
    for value in model.report(variables.params).values():
        assert jnp.shape(value) == () and np.isfinite(value)


def data(tokens) -> FederatedData:
    """Five clients of one to three rows."""
    rng, sizes = np.random.default_rng(0), (1, 3, 2, 1, 2)
    x = rng.normal(size=(sum(sizes), *tokens["x"].shape[1:])).astype(np.float32)
    columns = {"x": x, "y": rng.integers(0, 3, len(x)).astype(np.int32)}
    return FederatedData.from_owners(columns, np.repeat(np.arange(5), sizes), 5)


def simulation(model, tokens, executor):
    local = local_training(model, optax.sgd(0.05), batch_plan(2, epochs=1))
    plain = {"uplink": codecs.none(), "downlink": codecs.none()}
    return simulate(fedavg(local), data(tokens), cohort_size=5, executor=executor, **plain)


def test_trained_parameters_and_state_travel_and_nothing_else(model, variables, tokens):
    found = simulation(model, tokens, executors.loop()).discover()
    assert sorted(one.channel.direction for one in found) == ["down", "up"]
    for one in found:
        assert one.channel.message_bytes == trees.num_bytes((variables.params, variables.state))


@pytest.mark.slow
def test_executors_and_padding_change_the_order_of_sums_alone(name, model, tokens):
    """8-bit grids make jumps of such differences, so there the two agree to a few steps of the grid."""
    rounds = {}
    for executor in (executors.loop(), executors.vmap(), executors.chunked(4), executors.pmap()):
        sim = simulation(model, tokens, executor)
        state, lines = sim.run_rounds(sim.init(), 1)
        rounds[len(rounds)] = sim.variables(state).params, lines[0]["train_loss"]
    loose = {"rtol": 0.0, "atol": 2e-2} if name.startswith(("qat", "chain")) else {"rtol": 1e-4, "atol": 1e-5}
    for params, loss in rounds.values():
        jax.tree.map(functools.partial(np.testing.assert_allclose, **loose), params, rounds[0][0])
        np.testing.assert_allclose(loss, rounds[0][1], rtol=1e-2)
