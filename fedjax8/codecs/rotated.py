"""Uniform stochastic quantization of a randomly rotated leaf: large values are spread before they are rounded.

    z = R x,   t = (z - low) / (high - low) * (L - 1),   q = floor(t) + [u < t - floor(t)],
    x^ = R' (low + q (high - low) / (L - 1)),   E[x^] = x

with R a Hadamard transform of random signs (`numerics.hadamard`), low and high the extremes of z, L = 2**bits levels.

Reference: Suresh et al., "Distributed Mean Estimation with Limited Communication" (arXiv 1611.00429), stochastic
rotated quantization. Formulas from the field's literature. There, and in FedJAX, all clients share one rotation, so
that the server may add first and rotate back once; here every message has its own, drawn from its encoding key, and is
decoded by itself. A leaf is padded with zeros to a power of two.

Guarantees, per leaf, with D = the power of two and step = (high - low) / (L - 1): unbiased, for every rotation;
||x^ - x|| <= sqrt(D) step, so also every |x^ - x|; E||x^ - x||**2 <= D step**2 / 4. The float32 transform adds an error
of about 2**-22 ||x||.

Message layout per leaf: ceil(D * bits / 8) bytes of packed codes, float32 low and step, both over 2**(h + 1) (2**h as
in `drive`), 8 bytes of rotation key. Other leaves stay float32.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from fedjax8.codecs._leaves import (
    TINY,
    check_bits,
    divided,
    half_power,
    largest_magnitude,
    leafwise,
    message_key,
    round_at_random,
    unit_of,
    within,
)
from fedjax8.keys import as_key
from fedjax8.numerics import pack_bits, padded_size, rotate, unpack_bits, unrotate
from fedjax8.types import Array, Codec


@struct.dataclass
class Rotated:
    """A rotated and quantized leaf on the wire. Its shape is static."""

    codes: Array
    """uint8 `[packed_size(D, bits)]`."""
    low: Array
    """float32 scalar, low / 2**(h + 1)."""
    step: Array
    """float32 scalar, step / 2**(h + 1)."""
    key: Array
    """uint32 `[2]`: key of the rotation."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def rotated(bits: int = 4, *, min_ndim: int = 2, min_size: int = 0) -> Codec:
    """Codec that rotates a leaf at random and rounds it at random to evenly spaced values between its extremes.

    Args:
      bits: width of a code, 1 to 8: 2**bits levels.
      min_ndim, min_size: leaves of at least that many dimensions and elements are quantized.

    Measures `quantization_error`.
    """
    check_bits(bits)
    intervals = 2**bits - 1

    def range_of(z):
        low = jnp.min(z) + jnp.sum(z - z)  # the sum is there to keep NaNs, see `numerics.max_abs`
        return low, (jnp.max(z) - low) * (1.0 / intervals)

    def encode_leaf(key, x):
        rounding, rotation = jax.random.split(key)
        words = message_key(rotation)
        whole = unit_of(largest_magnitude(x))
        z = rotate(as_key(words), x * (1 / whole))
        low, step = range_of(z)
        codes = round_at_random(rounding, jnp.clip(divided(z - low, step), 0.0, intervals))
        down = np.float32(2.0 ** (-half_power(z.size) - 1))
        return Rotated(pack_bits(codes, bits), low * down * whole, step * down * whole, words, x.shape)

    def decode_leaf(message):
        size = padded_size(math.prod(message.shape))
        q = unpack_bits(message.codes, bits, size).astype(jnp.float32)
        whole = unit_of(jnp.maximum(jnp.abs(message.low), jnp.abs(message.step)))
        up = 1 / whole * np.float32(2.0 ** (half_power(size) + 1))
        z = message.low * up + q * (message.step * up)
        return within(whole * unrotate(as_key(message.key), z, message.shape))

    def bound(x):
        # For any rotation: high - low <= 2 ||x||. The second term is for the float32 transform, the third for a low and
        # a step that, sent, are subnormal.
        size = padded_size(x.size)
        factor = math.sqrt(size) * 2 / intervals + 2.0**-20
        largest = largest_magnitude(x)
        norm = jnp.sqrt(jnp.sum(jnp.square(divided(x, largest))))
        tiny = math.sqrt(size) * 2.0 ** (half_power(size) + 1) * (intervals + 1) * float(TINY)
        return jnp.broadcast_to(largest * (factor * norm) + tiny, x.shape)

    # Coordinates of z are sums of independent signs, so E max |z|**2 <= 2 (ln(2 D) + 1) ||x||**2 / D and the squared
    # error at most 2 (ln(2 D) + 1) / intervals**2 ||x||**2: below 0.3 from 4 bits on, for any leaf of less than 2**40.
    return leafwise(
        encode_leaf,
        decode_leaf,
        Rotated,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=True,
        error_bound=bound,
        contracts=bits >= 4,
    )


EXAMPLES = ({}, {"bits": 1, "min_ndim": 0})
