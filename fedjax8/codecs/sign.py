"""One bit per value: its sign, and one scale for the leaf.

    x^ = scale * sign(x),   scale = ||x||_1 / d   or 1,   sign(0) = +1

Reference: signSGD with majority vote (Bernstein et al., arXiv 1802.04434 and 1810.05291) for `scale="none"`;
Karimireddy et al., "Error Feedback Fixes SignSGD" (arXiv 1901.09847) for the scale ||x||_1 / d. Formulas from the
field's literature; one bit has no zero, and that zero (also -0) goes up is our choice.

Guarantees, per leaf of d values. Deterministic and biased; wrap it in error feedback. With the l1 scale, the
least-squares one for these signs, a contraction:
||x^ - x||**2 = (1 - ||x||_1**2 / (d ||x||**2)) ||x||**2 <= (1 - 1 / d) ||x||**2, and an all-zero leaf decodes to zeros.
Without a scale x^ is +-1, whatever the size of x: the mean over clients lies in [-1, 1], and its sign is the majority.
There NaN is sent as -1, as no number travels that could show it.

Message layout per leaf of n values: ceil(n / 8) bytes of signs (bit 1: negative), then the float32 scale if there is
one. Other leaves stay float32.
"""

import math

import jax.numpy as jnp
from flax import struct

from fedjax8.codecs._leaves import check_one_of, divided, largest_magnitude, leafwise
from fedjax8.numerics import pack_bits, unpack_bits
from fedjax8.types import Array, Codec

SCALES = ("l1", "none")


@struct.dataclass
class Signs:
    """A leaf's signs on the wire. Its shape is static."""

    negative: Array
    """uint8 `[ceil(n / 8)]`, packed bits."""
    scale: Array | None
    """float32 scalar; None where every value is +-1."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def sign(scale: str = "l1", *, min_ndim: int = 2, min_size: int = 0) -> Codec:
    """Codec that sends signs.

    Args:
      scale: `l1`, the mean magnitude of the leaf, or `none`: values decode to +-1 (majority vote).
      min_ndim, min_size: leaves of at least that many dimensions and elements are encoded.

    Measures `quantization_error`.
    """
    check_one_of("scale", scale, SCALES)

    def scale_of(x):
        if scale == "none":
            return None
        largest = largest_magnitude(x)  # taken out, so that the sum cannot overflow
        return largest * jnp.mean(jnp.abs(divided(x, largest)))

    def encode_leaf(key, x):
        return Signs(pack_bits(~(x >= 0), 1), scale_of(x), x.shape)

    def decode_leaf(message):
        negative = unpack_bits(message.negative, 1, math.prod(message.shape)).reshape(message.shape)
        magnitude = 1.0 if message.scale is None else message.scale
        return jnp.where(negative == 1, -magnitude, magnitude).astype(jnp.float32)

    def bound(x):
        scale_sent = 1.0 if scale == "none" else scale_of(x)
        return jnp.abs(jnp.abs(x) - scale_sent) + 2.0**-22 * scale_sent  # a mean is off by a few roundings

    return leafwise(
        encode_leaf,
        decode_leaf,
        Signs,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=False,
        error_bound=bound,
        contracts=scale == "l1",
        aligned=True,
    )


EXAMPLES = ({}, {"scale": "none", "min_ndim": 0})
