"""Rounding to a small floating-point grid by 32-bit integer and float operations alone.

XLA's conversions to and from 8-bit floats cost three to five times as much on CPU as the few operations below, which
give the same bits. The functions here work on *codes*: unsigned integers of `fmt.bits` bits, the sign on top. They
work for every `Format`, also for those narrower than 8 bits that have no array type in JAX.

Two ideas carry the file; M is the number of mantissa bits, `2**e` the binade of |x|, never below the smallest normal.

1. Nearest. Adding `2**(23 + e - M)` to |x| leaves a float32 whose last mantissa bit is worth exactly one step of the
   grid, so the processor's own rounding (nearest, ties to even) does the work, for normal and subnormal numbers alike.
2. Stochastic. The float32 pattern of |x|, less a constant, *is* the code as a fixed-point number with 23 - M fractional
   bits: codes are in the order of their values and linear inside a binade. Adding uniform fractional bits and cutting
   them off rounds up with exactly the probability of the fraction.

Float32 subnormals (below 1.2e-38) may count as zero or not, as the processor likes: on every grid here both round to
zero. No intermediate result is ever a float32 subnormal.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.numerics.formats import Format

_MANTISSA = 23  # stored mantissa bits of float32
_EXPONENT_MASK = np.int32(0x7F800000)  # also the pattern of infinity
_MAGNITUDE_MASK = np.int32(0x7FFFFFFF)
_SIGN_MASK = np.int32(-0x80000000)


def _pattern(value: float) -> np.int32:
    """The float32 bit pattern of a constant."""
    return np.float32(value).view(np.int32)


def _as_int(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.int32)


def _as_float(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x, jnp.float32)


def magnitude_pattern(x: jax.Array) -> jax.Array:
    """The pattern (int32) of |x|: in the order of |x|, with NaN above infinity."""
    return _as_int(x) & _MAGNITUDE_MASK


def _to_anchor(fmt: Format) -> np.int32:
    """Difference of the pattern of 2**e to that of the anchor 2**(23 + e - M)."""
    return np.int32((_MANTISSA - fmt.mantissa_bits) << _MANTISSA)


def _nearest_steps(magnitude: jax.Array, fmt: Format) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Pattern of the anchor 2**(23 + e - M), float32 sum |x| + anchor, pattern of 2**e; from the pattern of |x|.

    e stops at the exponent of fmt.max: larger values are not rounded in steps of their own, but never to less.
    """
    binade = jnp.clip(magnitude & _EXPONENT_MASK, _pattern(fmt.smallest_normal), _pattern(fmt.max) & _EXPONENT_MASK)
    anchor = binade + _to_anchor(fmt)
    return anchor, _as_float(magnitude) + _as_float(anchor), binade


def nearest_codes(x: jax.Array, fmt: Format) -> jax.Array:
    """Codes (uint8) of the grid values nearest to float32 `x`, ties to even, saturating at +-fmt.max."""
    pattern = _as_int(x)
    magnitude = jnp.minimum(pattern & _MAGNITUDE_MASK, _pattern(fmt.max))
    binade = jnp.maximum(magnitude & _EXPONENT_MASK, _pattern(fmt.smallest_normal))
    total = _as_float(magnitude) + _as_float(binade + _to_anchor(fmt))
    # The code is the whole steps inside the binade (total - anchor) and those below it. Only its lowest bits are kept,
    # and there the anchor, a power of two, has none.
    below = (binade - _pattern(fmt.smallest_normal)) >> (_MANTISSA - fmt.mantissa_bits)
    code = (_as_int(total) + below) & np.int32((1 << (fmt.bits - 1)) - 1)
    return _finish_codes(code, pattern, fmt)


def nearest_magnitude(x: jax.Array, fmt: Format) -> jax.Array:
    """The grid value (float32) nearest to |x|, ties to even; beyond fmt.max some number not below it, NaN for NaN."""
    anchor, total, _ = _nearest_steps(_as_int(x) & _MAGNITUDE_MASK, fmt)
    return total - _as_float(anchor)


def with_sign(magnitude: jax.Array, x: jax.Array, fmt: Format) -> jax.Array:
    """A non-negative float32 `magnitude` with the sign of float32 `x`; zero stays +0 in formats without -0."""
    sign = _as_int(x) & _SIGN_MASK
    if not fmt.has_negative_zero:
        sign = jnp.where(magnitude == 0, np.int32(0), sign)
    return _as_float(_as_int(magnitude) | sign)


def nearest_values(x: jax.Array, fmt: Format) -> jax.Array:
    """The grid values (float32) nearest to float32 `x`, ties to even, saturating at +-fmt.max; NaN stays NaN."""
    magnitude = nearest_magnitude(x, fmt)
    return with_sign(jnp.where(magnitude > fmt.max, np.float32(fmt.max), magnitude), x, fmt)


def _fixed_point(magnitude: jax.Array, fmt: Format) -> jax.Array:
    """The code of |x| as a fixed-point number with 23 - M fractional bits, from the clipped pattern of |x|.

    Normal numbers: the pattern less a constant. Subnormal numbers: adding the smallest normal lines them up with one
    step. Each of the two lies below the other outside its own range, so the larger is the right one.
    """
    floor = _pattern(fmt.smallest_normal)
    subnormal = _as_int(_as_float(magnitude) + np.float32(fmt.smallest_normal)) - floor
    return jnp.maximum(magnitude - (floor - np.int32(1 << _MANTISSA)), subnormal)


def _dithered(pattern: jax.Array, dither: jax.Array, fmt: Format) -> jax.Array:
    """Fixed-point code of |x| after stochastic rounding, its fractional bits still there but meaningless."""
    fraction_bits = _MANTISSA - fmt.mantissa_bits
    whole = np.int32(1 << fraction_bits)
    fixed = _fixed_point(jnp.minimum(pattern & _MAGNITUDE_MASK, _pattern(fmt.max)), fmt)
    # A value that was on the grid before it was scaled comes here with a relative error of a few float32 roundings.
    # Within 2**-18 of a grid point it counts as that point: relative to |x| for subnormal numbers, relative to the
    # power of two below |x| for normal ones (a constant number of fractional bits there).
    tolerance = jnp.minimum(fixed >> 18, np.int32(1 << 5))
    shifted = fixed + tolerance
    excess = shifted & (whole - np.int32(1))
    fixed = jnp.where(excess <= 2 * tolerance, shifted - excess, fixed)
    return fixed + (dither >> np.uint32(32 - fraction_bits)).astype(jnp.int32)


def stochastic_codes(x: jax.Array, dither: jax.Array, fmt: Format) -> jax.Array:
    """Codes (uint8) of float32 `x` rounded up or down at random, driven by uniform uint32 `dither` of its shape."""
    pattern = _as_int(x)
    code = _dithered(pattern, dither, fmt) >> (_MANTISSA - fmt.mantissa_bits)
    return _finish_codes(code, pattern, fmt)


def stochastic_values(x: jax.Array, dither: jax.Array, fmt: Format) -> jax.Array:
    """Grid values (float32) of `x` rounded up or down at random; the values of `stochastic_codes`."""
    pattern = _as_int(x)
    whole = np.int32(1 << (_MANTISSA - fmt.mantissa_bits))
    return _finish_values(_magnitude(_dithered(pattern, dither, fmt) & -whole, fmt), pattern, fmt)


def neighbors(x: jax.Array, fmt: Format) -> tuple[jax.Array, jax.Array]:
    """Magnitudes (float32) of the grid values below and above |x|: `below <= |x| < above`; both fmt.max beyond it."""
    fraction_bits = _MANTISSA - fmt.mantissa_bits
    whole = np.int32(1 << fraction_bits)
    below = _fixed_point(jnp.minimum(_as_int(x) & _MAGNITUDE_MASK, _pattern(fmt.max)), fmt) & -whole
    above = jnp.minimum(below + whole, np.int32(fmt.max_code << fraction_bits))
    return _as_float(_magnitude(below, fmt)), _as_float(_magnitude(above, fmt))


def _magnitude(fixed: jax.Array, fmt: Format) -> jax.Array:
    """Float32 pattern of the grid value whose whole fixed-point code is given: the inverse of `_fixed_point`."""
    floor = _pattern(fmt.smallest_normal)
    subnormal = _as_float(fixed + floor) - np.float32(fmt.smallest_normal)
    return jnp.minimum(fixed + (floor - np.int32(1 << _MANTISSA)), _as_int(subnormal))


def decode(codes: jax.Array, fmt: Format) -> jax.Array:
    """The float32 values of uint8 codes; exact, infinities and NaNs included."""
    code = codes.astype(jnp.int32)
    sign = np.int32(1 << (fmt.bits - 1))
    magnitude = code & (sign - np.int32(1))
    pattern = _magnitude(magnitude << (_MANTISSA - fmt.mantissa_bits), fmt)
    if fmt.has_inf:
        special = jnp.where(magnitude == np.int32(fmt.max_code + 1), _EXPONENT_MASK, _pattern(np.nan))
        pattern = jnp.where(magnitude > np.int32(fmt.max_code), special, pattern)
    elif not fmt.has_negative_zero:
        pattern = jnp.where(code == sign, _pattern(np.nan), pattern)
    elif fmt.nan_code is not None:
        pattern = jnp.where(magnitude > np.int32(fmt.max_code), _pattern(np.nan), pattern)
    return _as_float(pattern | ((code & sign) << (32 - fmt.bits)))


def _finish_codes(code: jax.Array, pattern: jax.Array, fmt: Format) -> jax.Array:
    """Puts the sign and the NaN of the float32 `pattern` on a non-negative int32 code."""
    sign_bit = np.int32(1 << (fmt.bits - 1))
    sign = (pattern >> (32 - fmt.bits)) & sign_bit
    is_nan = (pattern & _MAGNITUDE_MASK) > _EXPONENT_MASK
    if fmt.nan_code is not None and fmt.has_negative_zero:
        # The sign last: who decodes at once then has it for nothing.
        return (jnp.where(is_nan, np.int32(fmt.nan_code), code) | sign).astype(jnp.uint8)
    if not fmt.has_negative_zero:
        sign = jnp.where(code == 0, np.int32(0), sign)
    nan_code = np.int32(fmt.nan_code or 0)  # a format without NaN writes zero
    return jnp.where(is_nan, nan_code, code | sign).astype(jnp.uint8)


def _finish_values(magnitude: jax.Array, pattern: jax.Array, fmt: Format) -> jax.Array:
    """Puts the sign and the NaN of the float32 `pattern` on a non-negative float32 pattern."""
    sign = pattern & _SIGN_MASK
    if not fmt.has_negative_zero:
        sign = jnp.where(magnitude == 0, np.int32(0), sign)
    is_nan = (pattern & _MAGNITUDE_MASK) > _EXPONENT_MASK
    return _as_float(jnp.where(is_nan, pattern, magnitude | sign))
