"""Clipped sums of models with layers, against the gradients of one example after another."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax8 import trees
from fedjax8.adapters.qat import qat
from fedjax8.local import _loss_and_sums
from fedjax8.models.linen import from_linen
from fedjax8.models.mlp import mlp
from fedjax8.privacy import dense_layers
from fedjax8.privacy.per_example import clipped_sum

ROWS = 6


class Twice(nn.Module):
    """One layer applied twice, and a kernel that is looked at beside its layer."""

    @nn.compact
    def __call__(self, x):
        shared, seen = nn.Dense(20), nn.Dense(20)
        x = seen(shared(shared(x)))
        return nn.Dense(3)(x + jnp.sum(seen.variables["params"]["kernel"] ** 2))


class Attention(nn.Module):
    """A block of a transformer on 4 tokens, whose last layer alone sees each example once."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(24)(x.reshape(len(x), 4, 5))
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm()(x))
        return nn.Dense(3)(nn.gelu(nn.Dense(48)(x)).mean(1))


MODELS = {
    "mlp": (lambda: mlp((16, 12), num_classes=3), {"Dense_0", "Dense_1", "Dense_2"}),
    "twice": (lambda: from_linen(Twice()), {"Dense_2"}),
    "quantized": (lambda: qat(mlp((16,), num_classes=3)), set()),
    "attention": (lambda: from_linen(Attention()), {"Dense_1"}),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_sum_is_that_of_examples_clipped_one_by_one(name):
    make, layers = MODELS[name]
    model, rng = make(), np.random.default_rng(0)
    x = rng.normal(size=(ROWS, 20)).astype(np.float32) * np.linspace(0.1, 3, ROWS, dtype=np.float32)[:, None]
    batch = {"x": jnp.asarray(x), "y": jnp.asarray([0, 1, 2, 0, 1, 2]), "mask": jnp.ones(ROWS).at[-1].set(0)}
    variables = jax.jit(model.init)(jax.random.key(1), batch)
    loss = functools.partial(_loss_and_sums, model)
    one = {k: v[:1] for k, v in batch.items()}
    assert set(dense_layers.find_layers(loss, variables, one, jax.random.key(0))) == layers

    alone = jax.jit(jax.grad(lambda params, row: loss(variables._replace(params=params), row, jax.random.key(0))[0]))
    found = [alone(variables.params, {k: v[i : i + 1] for k, v in batch.items()}) for i in range(ROWS - 1)]
    norms = np.array([np.sqrt(sum(np.sum(np.square(np.float64(x))) for x in jax.tree.leaves(g))) for g in found])
    bound = 1.01 * float(np.median(norms))  # no tie with a norm
    wanted = trees.zeros_like(variables.params)
    for gradient, norm in zip(found, norms, strict=True):
        wanted = trees.add(wanted, trees.scale(min(1.0, bound / norm), gradient))
    total, sums = jax.jit(lambda v, b: clipped_sum(loss, v, b, jax.random.key(0), bound, 4))(variables, batch)
    assert float(sums["train_clipped"]) == np.sum(norms > bound)
    for path, leaf in trees.named_leaves(wanted).items():
        np.testing.assert_allclose(trees.named_leaves(total)[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)
