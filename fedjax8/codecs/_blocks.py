"""Small floats with a scale for every block of consecutive values: the common part of `block_fp8` and `narrow`.

    code = round_to_grid(x / scale),   x^ = code * scale

Scales, with `largest` the block's largest magnitude and fmt.max = c 2**e that of the format, 1 <= c < 2:

- `power_of_two`: the smallest power of two at which nothing is clipped, largest <= fmt.max * scale; 1 byte (e8m0).
- `ocp`: 2**(floor(log2(largest)) - e), the rule of the OCP MX specification v1.0, section 6.3; 1 byte. The same but
  where `largest` is above c 2**floor(log2(largest)): then values beyond fmt.max * scale are clipped.
- `float32`: largest / fmt.max, sent as the largest magnitude in 4 bytes; see `numerics.scales`.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax

from fedjax8.codecs._leaves import check_one_of, into_rows, largest_magnitude, leafwise, per_value, within
from fedjax8.numerics import bits, pack_bits, scales, unpack_bits
from fedjax8.numerics.casts import as_codes, as_storage
from fedjax8.numerics.dither import hash_bits
from fedjax8.numerics.formats import Format
from fedjax8.types import Array, Codec

ROUNDINGS = ("stochastic", "nearest")
SCALES = ("power_of_two", "ocp", "float32")
_MANTISSA = 23  # bits of float32


@struct.dataclass
class Blocks:
    """A leaf in blocks on the wire. Its shape is static."""

    codes: Array
    """8-bit floats `[n]`, or packed codes of narrower formats, uint8 `[packed_size(n, fmt.bits)]`."""
    scales: Array
    """float8_e8m0fnu or float32 `[ceil(n / block)]`."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def block_scaled(fmt: Format, rounding: str, *, block: int | None, scale: str, min_ndim: int, min_size: int) -> Codec:
    """The codec of `block_fp8` and `narrow`, for a format of any width; None for `block`: one scale for the leaf."""
    check_one_of("rounding", rounding, ROUNDINGS)
    check_one_of("scale", scale, SCALES)
    if block is not None and block < 1:
        raise ValueError(f"block must be at least 1; got {block}")

    def units(x):
        """(scales as they are sent, float32 factor of each value into units of the format)."""
        largest = largest_magnitude(into_rows(x, block), axis=-1)
        if scale == "float32":
            return largest, np.float32(fmt.max) / scales.floor_alpha(largest)
        exponents = _exponent_codes(largest, fmt, clips=scale == "ocp")
        return lax.bitcast_convert_type(exponents.astype(jnp.uint8), jnp.float8_e8m0fnu), _power(254 - exponents)

    def scale_of(sent):
        if scale == "float32":
            return scales.scale_for(sent, fmt)
        exponents = lax.bitcast_convert_type(sent, jnp.uint8).astype(jnp.int32)
        return jnp.where(exponents == 255, jnp.nan, _power(exponents))

    def encode_leaf(key, x):
        shape, x = x.shape, x.reshape(-1)
        sent, factor = units(x)
        in_units = x * per_value(factor, block, x.shape)
        if rounding == "stochastic":
            codes = bits.stochastic_codes(in_units, hash_bits(key, in_units.shape), fmt)
        else:
            codes = bits.nearest_codes(in_units, fmt)
        return Blocks(as_storage(codes, fmt) if fmt.bits == 8 else pack_bits(codes, fmt.bits), sent, shape)

    def decode_leaf(message):
        if fmt.bits == 8:
            codes, _ = as_codes(message.codes, fmt)
        else:
            codes = unpack_bits(message.codes, fmt.bits, math.prod(message.shape))
        values = bits.decode(codes, fmt).reshape(message.shape)
        return within(values * per_value(scale_of(message.scales), block, message.shape))

    def bound(x):
        unit = per_value(scale_of(units(x)[0]), block, x.shape)
        size = jnp.abs(x)
        step = jnp.maximum(2.0**-fmt.mantissa_bits * jnp.minimum(size, fmt.max * unit), fmt.smallest_subnormal * unit)
        return jnp.maximum(size - fmt.max * unit, 0.0) + step * (1.0 if rounding == "stochastic" else 0.5)

    unbiased = rounding == "stochastic"
    # To nearest, the largest value of a block keeps most of itself. At random, values of d that are below the smallest
    # step err by at most sqrt(d) / (2 s) of the squared norm, with s such steps in the largest value, larger ones by
    # less; a rule for powers of two halves s, at worst.
    steps = fmt.max / fmt.smallest_subnormal / (1 if scale == "float32" else 2)
    contracts = not unbiased or fmt.bits == 8 or (block is not None and math.sqrt(block) < 2 * steps)
    return leafwise(
        encode_leaf,
        decode_leaf,
        Blocks,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=unbiased and scale != "ocp",
        error_bound=bound,
        contracts=contracts,
    )


def _exponent_codes(largest: Array, fmt: Format, clips: bool) -> Array:
    """int32 codes k of the scale 2**(k - 127), by the bits of float32; 255 where `largest` is not finite.

    k is at least 1: 2**-127 is no normal float32. It stays below 254, so that 2**(127 - k) is a normal float32 too.
    """
    pattern = lax.bitcast_convert_type(largest, jnp.int32)
    exponent = pattern >> _MANTISSA
    mantissa = np.int32((1 << _MANTISSA) - 1)
    top = int(np.frexp(fmt.max)[1]) - 1
    if not clips:
        exponent = exponent + ((pattern & mantissa) > (np.float32(fmt.max).view(np.int32) & mantissa))
    return jnp.where(jnp.isfinite(largest), jnp.maximum(exponent - top, 1), 255)


def _power(exponents: Array) -> Array:
    """float32 2**(k - 127) for k from 1 to 254."""
    return lax.bitcast_convert_type(exponents << _MANTISSA, jnp.float32)
