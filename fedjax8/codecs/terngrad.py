"""Three values per leaf (TernGrad): -a, 0 and a, chosen at random without bias.

    c = clip(x, -k sigma, k sigma),   a = max|c|,   x^ = a sign(c) [u < |c| / a],   u uniform,   E[x^] = c

Reference: Wen et al., "TernGrad" (arXiv 1705.07878), with the clip at k = 2.5 standard deviations. Formulas from the
field's literature. Ours: sigma is the deviation about zero, sqrt(mean x**2). About the mean, as the paper has it, it is
zero for a leaf that is constant or has one element, which would then be erased; gradients and updates have means near
zero, where the two agree.

Guarantees, per leaf: E[x^] = c, so that the codec is unbiased without a clip. With one it is not: of normal values 1.2
percent lie beyond 2.5 sigma, of sparse ones nearly all large ones may. Values in {-a, 0, a};
E(x^ - x)**2 = |x| (a - |x|), and |x^ - x| <= max(|x|, a - |x|), for |x| <= a; |x| - a beyond.

Message layout per leaf of n values: codes 0, 1, 2 for 0, a, -a; `plain`: 2 bits each, ceil(n / 4) bytes; `base3`: five
to a byte, the first the least significant digit, ceil(n / 5) bytes (1.6 bits a value, where log2(3) = 1.58). Then the
float32 a. Other leaves stay float32.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct

from fedjax8 import xla_cpu
from fedjax8.codecs._leaves import check_one_of, divided, largest_magnitude, leafwise
from fedjax8.numerics import pack_bits, uniform, unpack_bits
from fedjax8.types import Array, Codec

PACKINGS = ("plain", "base3")
_DIGITS = 5  # 3**5 = 243 fit a byte


@struct.dataclass
class Ternary:
    """A leaf of three values on the wire. Its shape is static."""

    codes: Array
    """uint8 `[ceil(n / 4)]` or `[ceil(n / 5)]`."""
    largest: Array
    """float32 scalar a."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def terngrad(clip: float | None = 2.5, packing: str = "plain", *, min_ndim: int = 2, min_size: int = 0) -> Codec:
    """Codec that sends each value as -a, 0 or a.

    Args:
      clip: k, in standard deviations about zero; None clips nothing and is unbiased, at a larger variance.
      packing: `plain` (2 bits a value) or `base3` (1.6).
      min_ndim, min_size: leaves of at least that many dimensions and elements are encoded.

    Measures `quantization_error`.
    """
    check_one_of("packing", packing, PACKINGS)
    if clip is not None and not 1 <= clip < math.inf:
        raise ValueError(f"clip must be at least 1 standard deviation, or None; got {clip}")

    def largest_of(x):
        largest = largest_magnitude(x)
        if clip is None:
            return largest
        return jnp.minimum(largest, largest * (clip * jnp.sqrt(jnp.mean(jnp.square(divided(x, largest))))))

    def encode_leaf(key, x):
        shape, x = x.shape, x.reshape(-1)
        a = largest_of(x)
        sent = uniform(key, x.shape) < jnp.abs(divided(x, a))
        codes = jnp.where(sent, jnp.where(x < 0, 2, 1), 0).astype(jnp.uint8)
        return Ternary(pack_bits(codes, 2) if packing == "plain" else pack_base3(codes), a, shape)

    def decode_leaf(message):
        size, a = math.prod(message.shape), message.largest
        codes = unpack_bits(message.codes, 2, size) if packing == "plain" else unpack_base3(message.codes, size)
        # Multiplied, so that an a that is NaN shows in every value.
        return (a * (codes & 1).astype(jnp.float32) - a * (codes >> 1).astype(jnp.float32)).reshape(message.shape)

    def bound(x):
        a, size = largest_of(x), jnp.abs(x)
        rounding = 2.0**-22 * a  # of a itself, a sum of squares
        return jnp.where(size <= a, jnp.maximum(size, a - size), size - a) + rounding

    return leafwise(
        encode_leaf,
        decode_leaf,
        Ternary,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=clip is None,
        error_bound=bound,
        aligned=True,
    )


def pack_base3(codes: Array) -> Array:
    """uint8 codes 0, 1, 2, flattened, five to a byte: uint8 `[ceil(n / 5)]`, the last byte filled up with zeros."""
    codes = xla_cpu.stored(codes, everywhere=True)  # computed once, not for each digit
    digits = jnp.pad(codes.reshape(-1), (0, -codes.size % _DIGITS)).reshape(-1, _DIGITS)
    return jnp.asarray(sum(digits[:, i] * np.uint8(3**i) for i in range(_DIGITS)))


def unpack_base3(packed: Array, count: int) -> Array:
    """The first `count` codes of bytes made by `pack_base3`."""
    whole = packed.astype(jnp.int32)
    digits = [(whole // 3**i) % 3 for i in range(_DIGITS)]
    return jnp.stack(digits, axis=-1).reshape(-1)[:count].astype(jnp.uint8)


EXAMPLES = ({}, {"clip": None, "packing": "base3", "min_ndim": 0})
