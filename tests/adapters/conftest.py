"""A vision transformer of any size, for the adapters that train little of it."""

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from fedjax8.models.linen import from_linen
from fedjax8.types import Variables


class Attention(nn.Module):
    """Attention with queries, keys and values in dense layers of their own."""

    heads: int

    @nn.compact
    def __call__(self, x):
        split = (*x.shape[:2], self.heads, -1)
        q, k, v = (nn.Dense(x.shape[-1], name=name)(x).reshape(split) for name in ("query", "key", "value"))
        return nn.Dense(x.shape[-1], name="output")(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class MLP(nn.Module):
    """Two dense layers."""

    hidden: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(x.shape[-1], name="second")(nn.gelu(nn.Dense(self.hidden, name="first")(x)))


class Block(nn.Module):
    """A pre-norm block."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        x = x + Attention(self.heads, name="attention")(nn.LayerNorm(name="norm_1")(x))
        return x + MLP(self.hidden, name="mlp")(nn.LayerNorm(name="norm_2")(x))


class Transformer(nn.Module):
    """Patches `[B, T, values]` to logits: a class token, positions, blocks, a norm, a head."""

    width: int
    depth: int
    heads: int
    hidden: int
    num_classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(self.width, name="patches")(x)
        normal = nn.initializers.normal(0.02)
        first = jnp.broadcast_to(self.param("class_token", normal, (1, self.width)), (len(x), 1, self.width))
        x = jnp.concatenate([first, x], axis=1)
        x = nn.Dropout(self.dropout, deterministic=not train)(x + self.param("position", normal, x.shape[1:]))
        for i in range(self.depth):
            x = Block(self.heads, self.hidden, name=f"block_{i}")(x)
        return nn.Dense(self.num_classes, name="head")(nn.LayerNorm(name="norm")(x)[:, 0])


@pytest.fixture(scope="session")
def transformer():
    """`(width, depth, heads, hidden, num_classes, dropout=0) -> Model`."""
    return lambda *sizes, **more: from_linen(Transformer(*sizes, **more), train_argument="train")


@pytest.fixture(scope="session")
def tiny(transformer):
    """One block of width 8 and a head of three classes."""
    return transformer(8, 1, 2, 16, 3)


@pytest.fixture(scope="session")
def two_blocks(transformer):
    """The same with two blocks."""
    return transformer(8, 2, 2, 16, 3)


@pytest.fixture(scope="session")
def vit_b16(transformer):
    """`classes -> Model` with the parameters of ViT-B/16 on 224 x 224 pixels."""
    return lambda classes: transformer(768, 12, 12, 3072, classes)


@pytest.fixture(scope="session")
def patches():
    """Two rows of 196 patches of 16 x 16 x 3 values, as shapes."""
    of = jax.ShapeDtypeStruct
    return {"x": of((2, 196, 768), jnp.float32), "y": of((2,), jnp.int32), "mask": of((2,), jnp.float32)}


@pytest.fixture(scope="session")
def tokens():
    """A batch for `tiny`."""
    x = jax.random.normal(jax.random.key(5), (4, 6, 5))
    return {"x": x, "y": jnp.asarray([0, 1, 2, 0]), "mask": jnp.ones(4)}


@pytest.fixture(scope="session")
def base(tiny, tokens):
    """Variables of `tiny`, and its logits."""
    variables = jax.jit(tiny.init)(jax.random.key(0), tokens)
    return variables, jax.jit(tiny.apply)(variables, tokens)[0]


@pytest.fixture(scope="session")
def sgd():
    """`(model, variables, batch, steps=1, rate=0.1, key=None) -> (variables, gradients of every step)`."""

    def run(model, variables, batch, steps=1, rate=0.1, key=None):
        def loss(params, state, frozen):
            outputs, state = model.apply(Variables(params, state, frozen), batch, key=key, train=True)
            return jnp.mean(model.loss(outputs, batch)), state

        @jax.jit
        def step(variables):
            gradients, state = jax.grad(loss, has_aux=True)(*variables)
            params = jax.tree.map(lambda p, g: p - rate * g, variables.params, gradients)
            return variables._replace(params=params, state=state), gradients

        gradients = []
        for _ in range(steps):
            variables, of_step = step(variables)
            gradients.append(of_step)
        return variables, gradients

    return run
