"""Top-k: the k values of largest magnitude and their positions; the rest decodes to zero.

    x^_j = x_j if |x_j| is among the k largest, else 0;      ||x - x^||^2 <= (1 - k/d) ||x||^2

Biased: use it inside `error_feedback` (Stich et al., arXiv 1809.07599), and on updates rather than on parameters.

Message layout: k float32 values in order of position, and their positions in ceil(log2 d) bits each (at least one),
packed: k * (4 + ceil(log2 d) / 8) bytes, or all d values alone where that is less. The values are a leaf of their own,
a matrix of one row, so that the next codec of a `chain` encodes them: `chain((topk(), fp8()))`.
"""

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fedjax8 import numerics
from fedjax8.codecs import _flat
from fedjax8.numerics.select import largest
from fedjax8.types import Array, Codec, PyTree


@struct.dataclass
class Sparse:
    """A sparse message; one entry in `values` and `positions` for the model, or for each tensor."""

    values: tuple[Array, ...]
    """float32 `[1, k]` (or as another codec left them)."""
    positions: tuple[Array, ...]
    """uint8: k packed positions in the flattened tree or tensor, ascending; none where all values are sent."""
    others: tuple[PyTree, ...]
    """Leaves that pass through."""
    layout: _flat.Layout = struct.field(pytree_node=False)


def topk(share: float = 0.01, *, count: int | None = None, scope: str = "model") -> Codec:
    """Codec that sends only the values of largest magnitude.

    Args:
      share: fraction of the values that is sent, to the nearest number; at least one value.
      count: their number, in place of a share.
      scope: `model` takes the largest of the whole tree, `tensor` those of every tensor.

    Guarantees: fixed size; a value that is sent arrives exactly; of equal magnitudes the first ones are sent; the error
    is at most the smallest magnitude that is sent.
    Measures `quantization_error`.
    """
    _flat.check_kept(share, count)
    _flat.check_scope(scope)

    def kept(size):
        """All where positions would cost more than they save."""
        k = _flat.number_kept(size, share, count)
        return size if 4 * k + numerics.packed_size(k, _bits(size)) >= 4 * size else k

    def encode(key, state, tree):
        vectors, others, layout = _flat.flatten(tree, scope)
        values, positions = [], []
        for x in vectors:
            if (k := kept(x.size)) < x.size:
                at = largest(_pattern(x), k)
                values.append(x[None, at])
                positions.append(numerics.pack_bits(at, _bits(x.size)))
            else:
                values.append(x[None])
                positions.append(jnp.zeros(0, jnp.uint8))
        return Sparse(tuple(values), tuple(positions), others, layout), state

    def decode(state, message):
        sizes = _flat.group_sizes(message.layout)
        vectors = []
        for size, values, packed in zip(sizes, message.values, message.positions, strict=True):
            values = values.reshape(-1)
            if values.size < size:
                values = _flat.scatter(size, numerics.unpack_bits(packed, _bits(size), values.size), values)
            vectors.append(values)
        return _flat.unflatten(vectors, message.others, message.layout)

    def error_bound(tree):
        vectors, others, layout = _flat.flatten(tree, scope)
        bounds = []
        for x in map(jnp.abs, vectors):
            smallest = jnp.sort(x)[-kept(x.size)]
            bounds.append(jnp.where(x > smallest, 0.0, x) if kept(x.size) < x.size else jnp.zeros_like(x))
        return _flat.unflatten(bounds, jax.tree.map(jnp.zeros_like, others), layout)

    return Codec(lambda tree: (), encode, decode, False, error_bound, _flat.squared_error, contracts=True)


def _bits(size: int) -> int:
    return max(1, (size - 1).bit_length())


def _pattern(x: Array) -> Array:
    """int32 in the order of |x|."""
    return lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


EXAMPLES = ({}, {"share": 0.3}, {"count": 2, "scope": "tensor"})
