"""Deterministic quantization in a number of bits that follows from the leaf's range (FedOBD's adaptive quantizer).

    m = (max x + min x) / 2,   a = max|x - m|,   s = floor(max(1, sqrt(32 ln(4) a / omega)))   levels,
    q = round(s |x - m| / a),   x^ = m + sign(x - m) a q / s

32 is the width of a float32; omega weighs traffic against error: the larger, the fewer levels.

Reference: FedOBD (arXiv 2208.05174), formulas as in the authors' code. Differences: m is the middle of the range also
where all values are negative (there the code's offset has the wrong sign, which wastes levels); s is capped at
2**(max_bits - 1) - 1, so that it fits a fixed number of planes; a leaf that is constant sends no plane.
A variant without signs (offset min x, 2**b - 1 levels) that is known under the same name is not this codec.

Guarantees, per leaf: |x^ - x| <= a / (2 s), up to float32 rounding; a constant leaf is exact. Biased.

Message layout per leaf of n values: float32 m, float32 a, uint16 s, and bit planes of ceil(n / 8) bytes each, as
`Sections` (of `present`, ceil(max_bits / 8) bytes): part 0 holds the signs (bit 1: negative), part 1 + i bit i of q.
Sent are the signs and the planes i with 2**i <= s: ceil(log2(s + 1)) + 1 bits a value. Other leaves stay float32.
"""

import math

import jax.numpy as jnp
from flax import struct
from jax import lax

from fedjax8 import xla_cpu
from fedjax8.codecs._leaves import divided, largest_magnitude, leafwise, unit_of, within
from fedjax8.numerics import pack_bits
from fedjax8.types import Array, Codec, Sections


@struct.dataclass
class Adaptive:
    """A quantized leaf on the wire. Its shape is static."""

    middle: Array
    """float32 scalar m."""
    largest: Array
    """float32 scalar a."""
    levels: Array
    """uint16 scalar s."""
    planes: Sections
    """`max_bits` parts, uint8 `[ceil(n / 8)]` each."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def adaptive(omega: float = 0.001, *, max_bits: int = 16, min_ndim: int = 2, min_size: int = 0) -> Codec:
    """Codec that chooses each leaf's number of levels from the range of its values.

    Args:
      omega: weight of traffic against error; 0.001 is FedOBD's for CIFAR-10, 0.0001 for IMDB.
      max_bits: most bits a value may take, sign included, 2 to 16.
      min_ndim, min_size: leaves of at least that many dimensions and elements are quantized.

    Measures `quantization_error`.
    """
    if not 0 < omega < math.inf:
        raise ValueError(f"omega must be positive; got {omega}")
    if max_bits not in range(2, 17):
        raise ValueError(f"max_bits must be a whole number from 2 to 16; got {max_bits!r}")
    most = 2 ** (max_bits - 1) - 1

    def grid(x):
        """m, a and s (float32), and x - m."""
        high, low = jnp.max(x), jnp.min(x)
        unit = unit_of(jnp.maximum(jnp.abs(high), jnp.abs(low)))  # so that the sum stays in float32
        middle = 0.5 * (high * (1 / unit) + low * (1 / unit)) * unit
        centered = x - middle
        largest = largest_magnitude(centered)
        levels = jnp.floor(jnp.clip(jnp.sqrt(largest * (32 * math.log(4) / omega)), 1, most))
        return middle, largest, levels, centered

    def encode_leaf(key, x):
        middle, largest, levels, centered = grid(x.reshape(-1))
        unit = divided(centered, largest)
        # The sign on top of q, computed before it is taken apart: else XLA computes it once for every plane.
        q = jnp.round(jnp.abs(unit) * levels).astype(jnp.int32) | ((unit < 0).astype(jnp.int32) << (max_bits - 1))
        q = xla_cpu.stored(q.astype(jnp.uint16), everywhere=True)
        planes = [(q >> i) & 1 for i in (max_bits - 1, *range(max_bits - 1))]
        worth = jnp.array([1, *(2**i for i in range(max_bits - 1))])  # the signs go with any level
        present = (worth <= levels) & (largest >= jnp.finfo(jnp.float32).tiny)
        sections = Sections(pack_bits(present, 1), tuple(pack_bits(plane, 1) for plane in planes))
        return Adaptive(middle, largest, levels.astype(jnp.uint16), sections, x.shape)

    def decode_leaf(message):
        size = math.prod(message.shape)
        places = lax.iota(jnp.uint8, 8)
        negative, *planes = (((part[:, None] >> places) & 1).astype(jnp.int32) for part in message.planes.parts)
        q = sum(plane << i for i, plane in enumerate(planes)) * (1 - 2 * negative)
        q = q.reshape(-1)[:size]
        unit = q.astype(jnp.float32) / message.levels.astype(jnp.float32)
        return within(message.middle + message.largest * unit).reshape(message.shape)

    def bound(x):
        middle, largest, levels, _ = grid(x)
        rounding = 2.0**-22 * (jnp.abs(middle) + largest)
        return jnp.broadcast_to(largest / (2 * levels) + rounding, x.shape)

    # With n values ||x^ - x||**2 <= n a**2 / (4 s**2): of large values below ||x||**2 if s may reach sqrt(n) / 2, which
    # 16 bits do for any leaf of less than 2**32; where a is small s grows with sqrt(a), and a constant bounds it.
    return leafwise(
        encode_leaf,
        decode_leaf,
        Adaptive,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=False,
        error_bound=bound,
        contracts=max_bits == 16,
    )


EXAMPLES = ({}, {"omega": 0.1, "max_bits": 6, "min_ndim": 0})
