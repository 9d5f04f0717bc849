"""Contractions: codecs with a memory of errors need an inner codec that contracts, or one that does once scaled.

    E||c(x) - x||^2 <= q ||x||^2 + c,   q < 1

A codec that is unbiased with a variance of omega ||x||^2, omega >= 1, does not: its error is longer than x. The
multiple of it that is nearest to x does, with q = omega / (1 + omega):

    a = <c(x), x> / ||c(x)||^2;      E||a c(x) - x||^2 = (1 - E cos^2) ||x||^2,   E cos^2 >= 1 / (1 + omega)

(by Cauchy and Schwarz, for <c(x), x> has the mean ||x||^2). The sender knows a and sends it, 4 bytes for each float32
leaf; unlike 1 / (1 + omega) for the worst of all trees it suits the tree at hand. Whatever c does, a c(x) is no farther
from x than zero is.
"""

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import trees
from fedjax8.codecs._leaves import divided, largest_magnitude, within
from fedjax8.types import Array, Codec, PyTree, check_codec


@struct.dataclass
class Scaled:
    """The inner codec's message and the factor of each decoded leaf."""

    message: PyTree
    factors: Array
    """float32 `[leaves]`: of the float32 leaves that are not empty, in tree order."""


def contracting(codec: Codec, what: str) -> Codec:
    """`codec` itself if it contracts; else the multiple of it that is nearest to each leaf, if that does.

    Args:
      what: name of the outer codec, for the error.

    Raises:
      ValueError: when neither contracts.
    """
    check_codec(codec)
    if codec.contracts:
        return codec
    if not (codec.unbiased or codec.aligned):
        raise ValueError(
            f"{what} needs a codec that contracts, else its memory grows from message to message; got one that neither "
            "contracts nor is unbiased, such as count_sketch, delta or error_feedback. Use it as it is, or another one "
            "inside, such as topk or sign; for a codec of your own say contracts=True"
        )

    def encode(key, state, tree):
        message, after = codec.encode(key, state, tree)
        decoded = trees.named_leaves(codec.decode(state, message))
        factors = [_factor(decoded[name], x) for name, x in trees.named_leaves(tree).items() if _takes(x)]
        return Scaled(message, jnp.stack(factors) if factors else jnp.zeros(0)), after

    def decode(state, message):
        leaves, structure = jax.tree.flatten(codec.decode(state, message.message))
        factors = iter(message.factors)
        return jax.tree.unflatten(structure, [within(x * next(factors)) if _takes(x) else x for x in leaves])

    return Codec(codec.init, encode, decode, False, None, codec.measure, contracts=True)


def _takes(x: Array) -> bool:
    return trees.is_float32(x) and x.size > 0


def _factor(decoded: Array, x: Array) -> Array:
    """a >= 0, 0 where nothing was decoded. From values divided by the largest, whose squares stay in float32."""
    sizes = largest_magnitude(decoded), largest_magnitude(x)
    c, y = divided(decoded, sizes[0]), divided(x, sizes[1])
    nearest = divided(jnp.sum(c * y), jnp.sum(c * c))
    return within(jnp.maximum(nearest, 0.0) * divided(sizes[1], sizes[0]))
