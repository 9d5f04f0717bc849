"""MOON: two rounds in NumPy with gradients by differences, its limit, and what the representation is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from fedjax8.adapters.lora import lora
from fedjax8.adapters.qat import qat
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.moon import contrast, moon
from fedjax8.codecs.none import none
from fedjax8.data.batches import batch_plan
from fedjax8.data.federated import FederatedData
from fedjax8.engine.simulation import simulate
from fedjax8.errors import UserError
from fedjax8.executors.loop import loop
from fedjax8.local import local_training
from fedjax8.models.linen import from_linen
from fedjax8.models.mlp import mlp
from fedjax8.models.representation import representation
from fedjax8.privacy.dp_sgd import dp_sgd

X = np.float32([[1.0, 0.5], [-0.5, 1.0], [0.3, -1.0], [1.5, 1.0]])
Y = np.int32([0, 1, 1, 0])
MU, TAU, RATE, STEPS = 3.0, 0.5, 0.5, 2


class Net(nn.Module):
    """Two dense layers of two units, without biases."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, use_bias=False, name="out")(jnp.tanh(nn.Dense(2, use_bias=False, name="hidden")(x)))


def built(make, gradient=None):
    """Two clients of two rows each, with full batches."""
    local = local_training(from_linen(Net()), optax.sgd(RATE), batch_plan(2, steps=STEPS), gradient)
    data = FederatedData.from_owners({"x": X, "y": Y}, np.array([0, 0, 1, 1]), 2)
    return simulate(make(local), data, cohort_size=2, executor=loop(), uplink=none(), downlink=none())


def kernels(params):
    return np.stack([params["hidden"]["kernel"], params["out"]["kernel"]]).astype(np.float64)


def loss_of(w, x, y, near, far):
    """The client's objective in NumPy: cross-entropy and mu times the contrast, of kernels `[2, 2, 2]`."""
    z = np.tanh(x @ w[0])
    logits = z @ w[1]
    plain = np.mean(np.log(np.sum(np.exp(logits), 1)) - logits[np.arange(len(y)), y])
    cosine = lambda a, b: np.sum(a * b, 1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    both = [np.exp(cosine(z, np.tanh(x @ other[0])) / TAU) for other in (near, far)]
    return plain + MU * np.mean(-np.log(both[0] / (both[0] + both[1])))


def gradient_of(w, *others):
    found = np.zeros_like(w)
    for place in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[place] = 1e-6
        found[place] = (loss_of(w + step, *others) - loss_of(w - step, *others)) / 2e-6
    return found


def test_rounds_follow_the_objective_with_the_clients_last_models():
    sim = built(functools.partial(moon, mu=MU, temperature=TAU))
    state = sim.init()
    x = kernels(sim.variables(state).params)
    last = [x, x]
    for _ in range(3):
        for i in (0, 1):
            y, rows = x, (X[2 * i : 2 * i + 2], Y[2 * i : 2 * i + 2])
            for _ in range(STEPS):
                y = y - RATE * gradient_of(y, *rows, x, last[i])
            last[i] = y
        x = np.mean(last, axis=0)
        state, _ = sim.run_round(state)
        np.testing.assert_allclose(kernels(sim.variables(state).params), x, atol=2e-5)
    own = state.clients.arrays()["algorithm"]["memory"].params["hidden"]["kernel"]
    np.testing.assert_allclose(own, [y[0] for y in last], atol=2e-5)


@pytest.mark.slow
def test_without_the_contrast_it_is_fedavg_bit_for_bit():
    ends = []
    for make in (functools.partial(moon, mu=0.0), fedavg):
        sim = built(make)
        ends.append(kernels(sim.variables(sim.run_rounds(sim.init(), 3)[0]).params))
    np.testing.assert_array_equal(*ends)


def test_a_row_of_zeros_has_no_direction_and_no_gradient():
    z, other = jnp.zeros((1, 2)), jnp.float32([[1.0, 2.0]])
    assert float(contrast(z, other, other, 0.5)[0]) == pytest.approx(np.log(2))
    gradient = jax.grad(lambda z: contrast(z, other, -other, 0.5)[0])(z)
    assert np.all(np.isfinite(gradient))


def low_rank(model):
    return lora(model, 1, targets="*")


@pytest.mark.parametrize("adapter", [lambda model: model, low_rank, pytest.param(qat, marks=pytest.mark.slow)])
def test_the_representation_is_the_input_of_the_last_layer_whatever_is_around_the_model(adapter):
    model = adapter(mlp(hidden=(5, 3), num_classes=2))
    batch = {"x": jnp.asarray(X), "y": jnp.asarray(Y), "mask": jnp.ones(4)}
    variables = model.init(jax.random.key(0), batch)
    seen = representation(model, variables, batch)
    assert seen.shape == (4, 3)
    plain = mlp(hidden=(5, 3), num_classes=2)
    params = plain.init(jax.random.key(0), batch).params
    hidden = X
    for name in ("Dense_0", "Dense_1"):
        hidden = np.maximum(hidden @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"]), 0)
    if adapter is not qat:  # which rounds, so that only the shape is the same
        assert np.any(hidden != 0)
        np.testing.assert_allclose(seen, hidden, atol=1e-6)


def test_a_model_without_layers_and_private_steps_are_refused(toys):
    with pytest.raises(UserError, match="no dense or convolution layer"):
        toys.build(moon, toys.q2(), steps=1).discover()
    with pytest.raises(UserError, match="reads the batch of a step"):
        built(moon, dp_sgd(noise_multiplier=1.0)).discover()


@pytest.mark.parametrize(
    "settings",
    [{"mu": -1.0}, {"mu": float("inf")}, {"temperature": 0.0}, {"temperature": float("inf")}, {"payload": "both"}],
)
def test_settings_out_of_range_are_refused(toys, settings):
    with pytest.raises(ValueError, match="must"):
        toys.build(functools.partial(moon, **settings), toys.q2(), steps=1)
