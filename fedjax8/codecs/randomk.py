"""Random-k: k values at positions that both sides draw from the same seed.

    x^_j = (d/k) x_j if j was drawn, else 0;      E[x^] = x,  E||x^ - x||^2 = (d/k - 1) ||x||^2

Rand-k of Stich et al. (arXiv 1809.07599) and Konecny et al. (arXiv 1610.05492, random masks). Without the factor d/k it
is biased and of smaller error, to be used inside `error_feedback`.

Message layout: k float32 values in order of position and a seed of 8 bytes; no positions. The values are a leaf of
their own, so that the next codec of a `chain` can encode them.
"""

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import numerics
from fedjax8.codecs import _flat
from fedjax8.keys import as_key
from fedjax8.numerics.select import largest
from fedjax8.types import Array, Codec, PyTree


@struct.dataclass
class Drawn:
    """A message; one entry in `values` for the model, or for each tensor."""

    values: tuple[Array, ...]
    """float32 `[k]` (or as another codec left them), unscaled."""
    seed: Array
    """uint32 `[2]`: what the positions are drawn from."""
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
    largest of d hashed counters, hence uniform as far as 31 random bits tell values apart.
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

    def encode(key, state, tree):
        vectors, others, layout = _flat.flatten(tree, scope)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        kept = draw(seed, _flat.group_sizes(layout))
        values = tuple(x[at] for x, at in zip(vectors, kept, strict=True))
        return Drawn(values, seed, others, layout), state

    def decode(state, message):
        sizes = _flat.group_sizes(message.layout)
        vectors = []
        for size, values, at in zip(sizes, message.values, draw(message.seed, sizes), strict=True):
            values = values * jnp.float32(size / values.size) if scaled else values
            vectors.append(
                jnp.zeros(size)
                .at[at]
                .set(values, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")
            )
        return _flat.unflatten(vectors, message.others, message.layout)

    def error_bound(tree):
        vectors, others, layout = _flat.flatten(tree, scope)
        factors = [n / _flat.number_kept(n, share, count) if scaled else 1.0 for n in _flat.group_sizes(layout)]
        # A value is lost, or arrives d/k times as large; where all are sent, neither happens.
        worst = [0.0 if f == 1.0 and scaled else max(1.0, f - 1.0) for f in factors]
        bounds = [w * jnp.abs(x) for w, x in zip(worst, vectors, strict=True)]
        return _flat.unflatten(bounds, jax.tree.map(jnp.zeros_like, others), layout)

    return Codec(lambda tree: (), encode, decode, scaled, error_bound, _flat.squared_error)


EXAMPLES = ({"share": 0.2}, {"count": 2, "scope": "tensor", "scaled": False})
