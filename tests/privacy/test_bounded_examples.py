"""A search for examples that add more than C, or nothing, to a clipped sum: every kind of layer, magnitudes from 1e-30
to 1e30, tokens that nearly cancel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax8.adapters.lora import lora
from fedjax8.adapters.qat import qat
from fedjax8.models.linen import from_linen
from fedjax8.privacy.per_example import clipped_sum

EXAMPLES, TOKENS, FEATURES = 64, 6, 8
SHORT = 1e-4
"""What a clipped gradient may lack of C: a hundred times what the module `norms` states, and far from a fault."""


class Net(nn.Module):
    """A small network with one kind of layer in it, whose example is `[TOKENS, FEATURES]`."""

    kind: str

    @nn.compact
    def __call__(self, x):
        if self.kind == "dense":
            return nn.Dense(7)(nn.Dense(20)(x.reshape(len(x), -1)))
        if self.kind == "tokens":
            return nn.Dense(48)(x)
        if self.kind == "conv":
            return nn.Conv(6, (2, 2))(x[..., None])
        if self.kind == "embedding":
            return nn.Embed(3, 16)((jnp.abs(x[..., 0]) > 1).astype(jnp.int32))
        if self.kind == "norm":
            return nn.Dense(20)(nn.GroupNorm(2)(nn.LayerNorm()(x)).mean(1))
        return nn.MultiHeadDotProductAttention(num_heads=2)(x)


MODELS = {kind: lambda kind=kind: from_linen(Net(kind)) for kind in ("dense", "tokens", "conv", "embedding", "norm")}
MODELS |= {
    "attention": lambda: from_linen(Net("attention")),
    "lora": lambda: lora(from_linen(Net("dense")), rank=2),
    "quantized dense": lambda: qat(from_linen(Net("dense"))),
    "quantized tokens": lambda: qat(from_linen(Net("tokens")), gradients="e5m2"),
}


def examples(rng, moderate):
    """x `[EXAMPLES, TOKENS, FEATURES]`, half of them one token with alternating signs and a little noise, and the
    magnitudes of the gradients of the outputs: 1 where all is `moderate`, and features up to 1e6."""
    x = rng.normal(size=(EXAMPLES, TOKENS, FEATURES))
    signs = (-1.0) ** np.arange(TOKENS)[:, None]
    nearly = signs * x[:, :1] * (1 + 10 ** rng.uniform(-8, -2, (EXAMPLES, 1, 1)) * rng.normal(size=x.shape))
    x = np.where(np.arange(EXAMPLES)[:, None, None] % 2, x, nearly)
    x *= 10 ** rng.uniform(*((0, 6) if moderate else (-30, 30)), (EXAMPLES, 1, 1))
    return np.float32(x), np.float32(10 ** rng.uniform(-30, 30, EXAMPLES) if not moderate else np.ones(EXAMPLES))


def lengths(gradients):
    """float64 `[EXAMPLES]`."""
    rows = [np.square(np.float64(x)).reshape(EXAMPLES, -1).sum(1) for x in jax.tree.leaves(gradients)]
    return np.sqrt(sum(rows))


@pytest.mark.parametrize("name", MODELS)
def test_no_example_adds_more_than_the_bound_and_none_that_is_finite_adds_nothing(name, rng):
    model = MODELS[name]()

    def loss(variables, batch, key, multiply=None):
        outputs, state = model.apply(variables, batch, multiply=multiply)
        # The outputs' gradients are nearly the same at all places, so that those of tokens with other signs cancel.
        weights = batch["size"][:, None] * (1 + 1e-7 * jnp.cos(jnp.arange(outputs[0].size, dtype=jnp.float32)))
        value = jnp.sum(weights * outputs.reshape(len(outputs), -1))
        return value, (state, {"train_loss": value})

    @jax.jit
    def run(variables, x, size, bound):
        def one(x, size):
            batch = {"x": x[None], "size": size[None]}
            key, alone = jax.random.key(0), lambda params: loss(variables._replace(params=params), batch, None)[0]
            summed, sums = clipped_sum(loss, variables, batch | {"mask": jnp.ones(1)}, key, bound, 1)
            return summed, sums, jax.grad(alone)(variables.params)

        return jax.vmap(one)(x, size)

    variables = model.init(jax.random.key(1), {"x": jnp.ones((2, TOKENS, FEATURES))})
    # LoRA's product starts at zero, and with it half of the gradients.
    variables = variables._replace(params=jax.tree.map(lambda p: p + 0.1, variables.params))
    clipped = 0
    for number, bound in enumerate(np.float32([0.5, 3.7, 0.5, 1e-6, 0.5, 1e4])):
        summed, sums, plain = run(variables, *examples(rng, moderate=number % 2 == 0), bound)
        found, whole = lengths(summed), lengths(plain)
        assert np.all(found <= bound), (found / bound).max()
        assert all(np.isfinite(value).all() for value in sums.values())
        usable = np.isfinite(whole)
        np.testing.assert_array_equal(np.asarray(sums["train_unusable"])[usable], 0)
        long = usable & (whole > bound * (1 + SHORT))
        assert np.all(found[long] >= bound * (1 - SHORT))
        assert np.all(found[usable & (whole > 1e-30)] > 0)
        np.testing.assert_array_equal(found[np.asarray(sums["train_unusable"]) > 0], 0)
        clipped += long.sum()
    assert clipped > EXAMPLES  # the search is one
