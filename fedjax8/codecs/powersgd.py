"""PowerSGD: a matrix as the product of two thin ones, by one step of the power method from where the last one ended.

    P = orthogonalize(M Q);   Q <- M^T P;   M^ = P Q^T

Vogels et al. (arXiv 1905.13727), algorithm 1, for messages that are decoded one by one: both halves are taken within
one encoding, so that P and Q are a client's own and are not averaged in between. M^ is the projection of M on the
columns of P; Q starts at random and is then the state, which lets slowly changing updates be followed with a small
rank. Use it inside `error_feedback`, as published.

A kernel of more than two dimensions is the matrix of its outputs (last axis) against all else. Vectors, and matrices
where n m < `min_rate` r (n + m), stay as they are.

Message layout: in tree order; such a leaf becomes P `[n, r]` and Q `[m, r]` in float32, 4 r (n + m) bytes.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fedjax8 import trees
from fedjax8.codecs import _flat
from fedjax8.codecs._leaves import divided, half_power, largest_magnitude, unit_of, within
from fedjax8.keys import random_key
from fedjax8.types import Array, Codec


@struct.dataclass
class LowRank:
    """A matrix on the wire."""

    p: Array
    """float32 `[n, r]`, orthonormal columns."""
    q: Array
    """float32 `[m, r]`, Q / 2**h with 2**h the power of two at or above sqrt(n), so that it never exceeds float32."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)
    """Shape of the leaf."""


def powersgd(rank: int = 2, *, min_rate: float = 2.0, seed: int = 0) -> Codec:
    """Codec that sends matrices as products of rank `rank`.

    Args:
      rank: r, columns of P and Q.
      min_rate: matrices that would not become smaller by at least this factor are sent unchanged (2 in the authors'
        code). From 1 on, which is the least, no rank exceeds a side of a matrix that is sent as a product.
      seed: of the first Q.

    Guarantees: fixed size; exact, up to float32, for matrices of at most that rank; the error's norm is at most the
    norm of M. State: Q of every such matrix, its columns scaled to length 1; a column without direction (of a zero
    matrix) keeps the one it had.
    Measures `quantization_error`.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank!r}")
    if min_rate < 1:
        raise ValueError(f"min_rate must be at least 1, else a matrix may get larger; got {min_rate!r}")

    def sides(x) -> tuple[int, int]:
        return math.prod(x.shape[:-1]), x.shape[-1]

    def pays(x) -> bool:
        if not trees.is_float32(x) or x.ndim < 2:
            return False
        n, m = sides(x)
        return n * m > 0 and n * m >= min_rate * rank * (n + m)

    def init(tree):
        key = random_key(seed)
        return {
            name: _unit_columns(jax.random.normal(jax.random.fold_in(key, i), (sides(x)[1], rank)), 0.0)
            for i, (name, x) in enumerate(trees.named_leaves(tree).items())
            if pays(x)
        }

    def encode(key, state, tree):
        new = {}

        def encode_leaf(name, x):
            if not pays(x):
                return x
            matrix = x.reshape(sides(x))
            size = largest_magnitude(matrix)
            matrix = divided(matrix, size)  # so that no square leaves float32
            p, _ = jnp.linalg.qr(_product(matrix, state[name]))
            q = _product(matrix.T, p)
            new[name] = _unit_columns(q, state[name])
            return LowRank(p, q * np.float32(2.0 ** -half_power(matrix.shape[0])) * size, x.shape)

        message = trees.map_named(encode_leaf, tree)
        return message, new

    def decode(state, message):
        def decode_leaf(x):
            if not isinstance(x, LowRank):
                return x
            unit = unit_of(largest_magnitude(x.q))
            matrix = _product(x.p, x.q.T * (1 / unit)) * np.float32(2.0 ** half_power(x.p.shape[0]))
            return within(matrix * unit).reshape(x.shape)

        return jax.tree.map(decode_leaf, message, is_leaf=lambda x: isinstance(x, LowRank))

    return Codec(init, encode, decode, False, None, _flat.squared_error, contracts=True)


def _product(a: Array, b: Array) -> Array:
    """a b with float32 factors, also where a device would round them first."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _unit_columns(q: Array, otherwise: Array | float) -> Array:
    """Columns of length 1; those of length 0 as in `otherwise`."""
    length = jnp.linalg.norm(q, axis=0)
    return jnp.where(length > 0, q / jnp.where(length > 0, length, 1.0), otherwise)


EXAMPLES = ({"rank": 1}, {"rank": 2, "min_rate": 1.0})
