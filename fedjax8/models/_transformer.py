"""Transformer blocks with LayerNorm, shared by `vit`, `text_encoder` and `gpt`.

    pre-norm     h = x + attention(norm_1(x)),     y = h + mlp(norm_2(h))
    post-norm    h = norm_1(x + attention(x)),     y = norm_2(h + mlp(h))

    attention(x) = softmax(q k^T / sqrt(width / heads)) v  output,      mlp(x) = gelu(x first) second

Vaswani et al., "Attention is all you need", NeurIPS 2017 (post-norm); Xiong et al., "On layer normalization in the
transformer architecture", ICML 2020 (pre-norm). Queries, keys and values are three dense layers, also where published
weights have one: then a path pattern can name the two that LoRA usually adapts. Below a block the paths are

    norm_1, attention/query, attention/key, attention/value, attention/output, norm_2, mlp/first, mlp/second

The products of q with k and of the softmax with v are no layers: `multiply` does not see them. The softmax, `heads *
tokens` numbers for each token, is not kept for the backward pass but computed again there.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp

from fedjax8.lookup import suggest
from fedjax8.models._blocks import block_size
from fedjax8.types import Array

DEVIATION = 0.02
initial = nn.initializers.truncated_normal(DEVIATION)
"""Initial deviation of kernels and learned tokens: normal, cut at two deviations; biases start at 0."""
BLOCK_BYTES = 2**20
"""CPU: rows are computed in blocks whose softmax fits a core's second-level cache."""


class Size(NamedTuple):
    """Width, depth and heads of a transformer."""

    width: int
    depth: int
    heads: int
    mlp: int


def choose_size(
    size: str, sizes: Mapping[str, tuple[int, int, int]], width: int, depth: int, heads: int, mlp: int
) -> Size:
    """The named `(width, depth, heads)`, with those given (not 0) in their place; `mlp` is 4 widths if 0.

    Raises ValueError for an unknown name and for numbers that do not go together.
    """
    if size not in sizes:
        raise ValueError(f"size is {size!r}; allowed are {', '.join(sizes)}{suggest(size, sizes)}")
    given = {"width": width, "depth": depth, "heads": heads, "mlp": mlp}
    for name, value in given.items():
        if value < 0:
            raise ValueError(f"{name} is {value}; it must be positive, or 0 for that of size {size!r}")
    width, depth, heads = (mine or named for mine, named in zip((width, depth, heads), sizes[size], strict=True))
    if width % heads:
        raise ValueError(f"heads must divide the width; got {heads} heads and width {width}")
    return Size(width, depth, heads, mlp or 4 * width)


def check_tokens(model: str, x: Array, max_length: int) -> None:
    """Raises ValueError unless x is int `[B, T]` with at most `max_length` tokens."""
    if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"{model} takes integers [B, T], the numbers of tokens; got {x.dtype} {x.shape}")
    if x.shape[1] > max_length:
        raise ValueError(f"{model} has max_length {max_length}, but rows have {x.shape[1]} tokens")


def norm(epsilon: float, name: str) -> nn.LayerNorm:
    """LayerNorm whose variance is that of centered values, which does not cancel where the mean is large."""
    return nn.LayerNorm(epsilon, use_fast_variance=False, name=name)


def _attend(query: Array, key: Array, value: Array, mask: Array | None, causal: bool) -> Array:
    """`[B, T, heads, features]` three times to the same shape; keeps its arguments alone for the backward pass.

    On CPUs in blocks of rows, one after the other: there XLA undoes a `jax.checkpoint` that stands outside a loop.
    """

    @jax.checkpoint
    def attend(rows):
        query, key, value, mask = rows
        return jax.nn.dot_product_attention(query, key, value, mask=mask, is_causal=causal, implementation="xla")

    batch, tokens, heads, _ = query.shape
    rows, size = (query, key, value, mask), batch
    if jax.default_backend() == "cpu":
        size = block_size(batch, BLOCK_BYTES // (4 * heads * tokens * tokens))
    if size == batch:
        return attend(rows)
    out = lax.map(attend, jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), rows))
    return out.reshape(query.shape)


class Attention(nn.Module):
    """Tokens `[B, T, width]` to the same shape; `mask` bool `[B, T]` is true for tokens that may be attended to, None
    for all.

    Causal attention sees a token itself and those before. Where no token may be attended to, all are, equally.
    """

    heads: int
    causal: bool = False
    output_deviation: float = DEVIATION

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        """The attention output of each token."""
        width = x.shape[-1]
        split = (*x.shape[:2], self.heads, width // self.heads)
        query, key, value = (
            nn.Dense(width, kernel_init=initial, name=name)(x).reshape(split) for name in ("query", "key", "value")
        )
        mask = None if mask is None else mask[:, None, None]
        attended = _attend(query, key, value, mask, self.causal).reshape(x.shape)
        return nn.Dense(width, kernel_init=nn.initializers.truncated_normal(self.output_deviation), name="output")(
            attended
        )


class TransformerMLP(nn.Module):
    """Tokens `[B, T, width]` to the same shape, each by itself. GELU is exact, or by the tanh of GPT-2."""

    hidden: int
    tanh_gelu: bool = False
    output_deviation: float = DEVIATION

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Two dense layers with a GELU between them."""
        width = x.shape[-1]
        x = nn.Dense(self.hidden, kernel_init=initial, name="first")(x)
        x = nn.gelu(x, approximate=self.tanh_gelu)
        return nn.Dense(width, kernel_init=nn.initializers.truncated_normal(self.output_deviation), name="second")(x)


class Block(nn.Module):
    """Tokens `[B, T, width]` to the same shape: attention, then an MLP, each added to its input."""

    heads: int
    mlp: int
    epsilon: float
    post_norm: bool = False
    causal: bool = False
    tanh_gelu: bool = False
    dropout: float = 0.0
    output_deviation: float = DEVIATION

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None, train: bool = False) -> Array:
        """The tokens, attended to and transformed; `mask` as for `Attention`."""
        attention = Attention(self.heads, self.causal, self.output_deviation, name="attention")
        mlp = TransformerMLP(self.mlp, self.tanh_gelu, self.output_deviation, name="mlp")
        for n, branch in ((1, lambda x: attention(x, mask)), (2, mlp)):
            normed = norm(self.epsilon, f"norm_{n}")
            y = branch(x if self.post_norm else normed(x))
            x = x + nn.Dropout(self.dropout, deterministic=not train)(y)
            x = normed(x) if self.post_norm else x
        return x
