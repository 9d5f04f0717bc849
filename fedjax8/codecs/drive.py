"""One bit per value after a random rotation (DRIVE): signs of the rotated leaf and one scale.

    z = R x,   x^ = S R' sign(z),   S = ||z||_2**2 / ||z||_1   or   ||z||_1 / D

with R a Hadamard transform of random signs (`numerics.hadamard`), of D values, the leaf padded to a power of two.

Reference: Vargaftik et al., "DRIVE: One-bit Distributed Mean Estimation" (arXiv 2105.08339). Formulas from the field's
literature. Every message has its own rotation, drawn from its encoding key; with one shared by all, errors of clients
would not average out.

Guarantees, per leaf. `unbiased`: <x^, x> = ||x||**2 for every key, and E[x^] = x if R were uniform over all rotations.
The Hadamard rotation falls short of that: E[x^] - x is orthogonal to x, small for large leaves without a few dominant
values, but not zero, so that the codec does not claim to be unbiased; (1, 0.5, 0, 0) always decodes to (1.25, 0, 0, 0).
`min_error`: the least-squares scale, ||x^||**2 = <x^, x>, a contraction:
||x^ - x||**2 = (1 - ||z||_1**2 / (D ||z||**2)) ||x||**2; for error feedback. For large D the error over ||x||**2 tends
to pi / 2 - 1 = 0.571 and 1 - 2 / pi = 0.363. No useful bound per element is known. An all-zero leaf decodes to zeros.

Message layout per leaf: ceil(D / 8) bytes of signs (bit 1: negative), the float32 scale S / 2**h, 8 bytes of rotation
key. Other leaves stay float32. S may be sqrt(D) times as large as any value; 2**h is the power of two at or above
sqrt(D), so that the scale sent never exceeds float32.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct

from fedjax8.codecs._leaves import (
    check_one_of,
    divided,
    half_power,
    largest_magnitude,
    leafwise,
    message_key,
    unit_of,
    within,
)
from fedjax8.keys import as_key
from fedjax8.numerics import pack_bits, padded_size, rotate, unpack_bits, unrotate
from fedjax8.types import Array, Codec

SCALES = ("unbiased", "min_error")


@struct.dataclass
class RotatedSigns:
    """A leaf's signs after rotation, on the wire. Its shape is static."""

    negative: Array
    """uint8 `[ceil(D / 8)]`, packed bits."""
    scale: Array
    """float32 scalar S / 2**h."""
    key: Array
    """uint32 `[2]`: key of the rotation."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def drive(scale: str = "unbiased", *, min_ndim: int = 2, min_size: int = 0) -> Codec:
    """Codec that sends the signs of the rotated leaf.

    Args:
      scale: `unbiased` (over uniform rotations) or `min_error`.
      min_ndim, min_size: leaves of at least that many dimensions and elements are encoded.

    Measures `quantization_error`.
    """
    check_one_of("scale", scale, SCALES)

    def encode_leaf(key, x):
        words = message_key(key)
        whole = unit_of(largest_magnitude(x))
        z = rotate(as_key(words), x * (1 / whole))
        largest = largest_magnitude(z)
        unit = divided(z, largest)  # so that squares neither overflow nor vanish
        sum_abs = jnp.sum(jnp.abs(unit))
        chosen = divided(jnp.sum(jnp.square(unit)), sum_abs) if scale == "unbiased" else sum_abs / z.size
        sent = largest * chosen * np.float32(2.0 ** -half_power(z.size)) * whole
        return RotatedSigns(pack_bits(~(z >= 0), 1), sent, words, x.shape)

    def decode_leaf(message):
        size = padded_size(math.prod(message.shape))
        negative = unpack_bits(message.negative, 1, size)
        whole = unit_of(message.scale)
        own = message.scale * (1 / whole) * np.float32(2.0 ** half_power(size))
        return within(whole * unrotate(as_key(message.key), jnp.where(negative == 1, -own, own), message.shape))

    return leafwise(
        encode_leaf,
        decode_leaf,
        RotatedSigns,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=False,
        contracts=scale == "min_error",
        aligned=True,
    )


EXAMPLES = ({}, {"scale": "min_error", "min_ndim": 0})
