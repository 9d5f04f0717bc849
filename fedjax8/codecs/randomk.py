"""Random-k: k values at positions that both sides draw from the same seed.

    x^_j = (d/k) x_j if j was drawn, else 0;      E[x^] = x,  E||x^ - x||^2 = (d/k - 1) ||x||^2

Rand-k of Stich et al. (arXiv 1809.07599) and Konecny et al. (arXiv 1610.05492, random masks). Without the factor d/k it
is biased and of smaller error, to be used inside `error_feedback`.

Message layout: k float32 values in order of position and a seed of 8 bytes, or all d values alone where that is less;
no positions. The values are a leaf of their own, a matrix of one row, so that the next codec of a `chain` encodes them.
"""

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import numerics
from fedjax8.codecs import _flat
from fedjax8.codecs._leaves import within
from fedjax8.keys import as_key
from fedjax8.numerics.select import largest
from fedjax8.types import Array, Codec, PyTree


@struct.dataclass
class RandomEntries:
    """A message; one entry in `values` for the model, or for each tensor."""

    values: tuple[Array, ...]
    """float32 `[1, k]` (or as another codec left them), unscaled."""
    seed: Array | None
    """uint32 `[2]`: seed of the positions; None where all values are sent."""
    others: tuple[PyTree, ...]
    """Leaves that pass through."""
    layout: _flat.Layout = struct.field(pytree_node=False)


def randomk(share: float = 0.01, *, count: int | None = None, scope: str = "model", scaled: bool = True) -> Codec:
    """Codec that sends values at random positions.

    Args:
      share: fraction of the values that is sent, to the nearest number; at least one value.
      count: their number, in place of a share.
      scope: `model` draws from the whole tree, `tensor` from every tensor.
      scaled: whether the receiver multiplies by d/k.

    Guarantees: fixed size; unbiased if scaled; unscaled, a value arrives exactly or as zero. Positions are those of the
    largest of d hashed counters, hence uniform as far as 31 random bits distinguish values.
    Measures `quantization_error`.
    """
    _flat.check_kept(share, count)
    _flat.check_scope(scope)

    def draw(seed, sizes):
        key = as_key(seed)
        keys = [jax.random.fold_in(key, i) for i in range(len(sizes))]
        return [
            largest((numerics.hash_bits(k, n) >> 1).astype(jnp.int32), _flat.number_kept(n, share, count))
            for k, n in zip(keys, sizes, strict=True)
        ]

    def everything(sizes):
        """Whether all values are sent, because a share and the seed would be no smaller."""
        return 4 * sum(_flat.number_kept(n, share, count) for n in sizes) + 8 >= 4 * sum(sizes)

    def encode(key, state, tree):
        vectors, others, layout = _flat.flatten(tree, scope)
        sizes = _flat.group_sizes(layout)
        if everything(sizes):
            return RandomEntries(tuple(x[None] for x in vectors), None, others, layout), state
        seed = jax.random.bits(key, (2,), jnp.uint32)
        values = tuple(x[None, at] for x, at in zip(vectors, draw(seed, sizes), strict=True))
        return RandomEntries(values, seed, others, layout), state

    def decode(state, message):
        sizes = _flat.group_sizes(message.layout)
        vectors = [values.reshape(-1) for values in message.values]
        if message.seed is not None:
            factors = [size / x.size if scaled else 1.0 for size, x in zip(sizes, vectors, strict=True)]
            vectors = [within(x * jnp.float32(factor)) for x, factor in zip(vectors, factors, strict=True)]
            drawn = zip(sizes, draw(message.seed, sizes), vectors, strict=True)
            vectors = [_flat.scatter(size, at, x) for size, at, x in drawn]
        return _flat.unflatten(vectors, message.others, message.layout)

    def error_bound(tree):
        vectors, others, layout = _flat.flatten(tree, scope)
        sizes = _flat.group_sizes(layout)
        factors = [n / _flat.number_kept(n, share, count) for n in sizes]
        # A value is lost, or arrives d/k times as large; where all are sent, neither happens.
        worst = [0.0 if f == 1.0 or everything(sizes) else max(1.0, f - 1.0) if scaled else 1.0 for f in factors]
        bounds = [w * jnp.abs(x) for w, x in zip(worst, vectors, strict=True)]
        return _flat.unflatten(bounds, jax.tree.map(jnp.zeros_like, others), layout)

    unbiased = scaled
    return Codec(
        lambda tree: (), encode, decode, unbiased, error_bound, _flat.squared_error, contracts=not scaled, aligned=True
    )


EXAMPLES = ({"share": 0.2}, {"count": 2, "scope": "tensor", "scaled": False})
