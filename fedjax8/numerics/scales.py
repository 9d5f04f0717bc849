"""Scaled grids: a small format stretched so that its largest value is a clipping value alpha.

    grid(alpha) = { g * alpha / fmt.max : g on the grid of fmt }
    Q(x; alpha) = g* * alpha / fmt.max,   g* the value of fmt nearest to clip(x, -alpha, alpha) * fmt.max / alpha

For "e4m3fnuz" this is the grid of the FP8 quantization papers, whose real-valued exponent bias is
b = 2**4 - log2(alpha) + log2(2 - 2**-3) - 1 (Kuzmin et al., "FP8 Quantization: The Power of the Exponent", arXiv
2208.09225), without a logarithm: 128 non-negative values, alpha among them.

Guarantees and their reasons
- One factor each way, `x * (fmt.max / alpha)` and `g * (alpha * (1 / fmt.max))`. Multiplying by a factor computed once
  costs less per element than dividing, and 1 / fmt.max is a constant here because XLA would turn a division by a
  constant into just that, but only inside jit. A factor is off by at most 2**-23, a decoded value by 3 * 2**-24.
- The largest code decodes to alpha exactly, not to alpha to within a rounding: it is set, not multiplied.
- Values of the grid re-encode to their own codes, to nearest and, with any key, stochastically.
- Multiplying x and alpha by a power of two multiplies Q by it, bit for bit (alpha >= MIN_ALPHA on both sides).
- No overflow and no loss to underflow for alpha anywhere in [MIN_ALPHA, 3e38]: both factors stay normal numbers.

alpha is a float32 scalar, or broadcasts against x (one value per channel, say). It is floored at MIN_ALPHA. An infinite
or NaN alpha gives NaNs, so that a diverged run shows.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.numerics import bits
from fedjax8.numerics.casts import as_codes, cast, check_form, round_to_grid
from fedjax8.numerics.formats import Format, get_format
from fedjax8.numerics.rounding import stochastic_cast

# The smallest clipping value: keeps scales of all-zero and empty tensors away from zero (project choice).
MIN_ALPHA = 1e-8


def floor_alpha(alpha: jax.Array | float) -> jax.Array:
    """max(alpha, MIN_ALPHA) in float32, the clipping value that is really used."""
    return jnp.maximum(jnp.asarray(alpha, jnp.float32), np.float32(MIN_ALPHA))


def max_abs(x: jax.Array) -> jax.Array:
    """max |x| over the whole tensor as a float32 scalar, MIN_ALPHA at least (so for empty and all-zero tensors).

    The usual first clipping value. A NaN or an infinity in `x` gives NaN. Its gradient is zero.
    """
    x = lax.stop_gradient(jnp.asarray(x, jnp.float32))
    if x.size == 0:
        return floor_alpha(0.0)
    # Patterns of magnitudes are in the order of their values, infinity and then NaNs on top. XLA on CPU computes the
    # maximum of integers inside the loop that makes x; that of floats it hands to a library, which drops NaNs.
    largest = lax.bitcast_convert_type(jnp.max(bits.magnitude_pattern(x)), jnp.float32)
    return floor_alpha(largest + (largest - largest))


def scale_for(alpha: jax.Array, fmt: str | Format) -> jax.Array:
    """alpha / fmt.max as float32: the value of one unit of the format.

    Example:
      >>> float(scale_for(896.0, "e4m3fn"))
      2.0
    """
    return floor_alpha(alpha) * np.float32(1.0 / get_format(fmt).max)


def _to_units(x: jax.Array, alpha: jax.Array, fmt: Format) -> jax.Array:
    """x in units of the format: alpha becomes fmt.max. Not clipped yet."""
    return lax.stop_gradient(jnp.asarray(x, jnp.float32) * (np.float32(fmt.max) / floor_alpha(alpha)))


def _from_units(values: jax.Array, alpha: jax.Array, fmt: Format) -> jax.Array:
    """Values of the format times alpha / fmt.max, with +-fmt.max going to +-alpha exactly."""
    # The two selects come last on purpose: XLA's CPU backend hands sums and products that feed a reduction or a matmul
    # to a library, one array per operation, and breaks up the single loop this should be. It leaves selects alone.
    alpha = lax.stop_gradient(floor_alpha(alpha))
    inside = values * scale_for(alpha, fmt)
    return jnp.where(values >= fmt.max, alpha, jnp.where(values <= -fmt.max, -alpha, inside))


@functools.partial(jax.jit, static_argnames=("fmt", "form"), inline=True)
def quantize(x: jax.Array, alpha: jax.Array, fmt: str | Format, form: str = "auto") -> jax.Array:
    """Q(x; alpha): `x` clipped to [-alpha, alpha] and rounded to the nearest value of the scaled grid, as float32.

    Args:
      x: any shape, float32. NaN stays NaN.
      alpha: clipping value, float32 scalar.
      fmt: a name of `FORMATS` or a `Format`.
      form: see `casts`.

    Returns:
      float32 of the shape of `x`, bit for bit `decode(encode(x, alpha, fmt), alpha, fmt)`. Its gradient is zero:
      train through `straight_through.fake_quantize`.

    Example:
      >>> float(quantize(jnp.float32(0.9), 1.0, "e4m3fnuz"))  # the neighbors are 13 / 15 and 14 / 15
      0.933333...
    """
    fmt = get_format(fmt)
    check_form(form)
    units = _to_units(x, alpha, fmt)
    if form == "native":
        return _from_units(round_to_grid(units, fmt, form), alpha, fmt)
    # The same on magnitudes, with half the selections and with saturation and alpha's own value in one of them.
    magnitude = bits.nearest_magnitude(units, fmt)
    alpha = lax.stop_gradient(floor_alpha(alpha))
    return bits.with_sign(jnp.where(magnitude >= fmt.max, alpha, magnitude * scale_for(alpha, fmt)), units, fmt)


@functools.partial(jax.jit, static_argnames=("fmt", "form"), inline=True)
def encode(
    x: jax.Array,
    alpha: jax.Array,
    fmt: str | Format,
    key: jax.Array | None = None,
    offset: int | jax.Array = 0,
    form: str = "auto",
) -> jax.Array:
    """The 8-bit codes of `x` on the scaled grid: to nearest, or rounded at random without bias when a key is given.

    Args:
      x, alpha, fmt, form: as in `quantize`.
      key: one typed key, or None for rounding to nearest.
      offset: index of the first element in the key's sequence (see `dither`).

    Returns:
      An array of dtype `fmt.dtype` (uint8 codes for narrower formats) in the shape of `x`. Never infinite; NaN only
      where `x` is NaN. With a key, E[decode(codes)] = clip(x, -alpha, alpha) to within 2**-18 |x|.
    """
    fmt = get_format(fmt)
    units = _to_units(x, alpha, fmt)
    return cast(units, fmt, form) if key is None else stochastic_cast(key, units, fmt, offset)


@functools.partial(jax.jit, static_argnames=("fmt",), inline=True)
def decode(codes: jax.Array, alpha: jax.Array, fmt: str | Format) -> jax.Array:
    """The float32 values of codes made by `encode` with the same alpha and format.

    Args:
      codes: array of dtype `fmt.dtype`, or uint8 codes.

    Returns:
      float32 of the same shape; NaN codes give NaN, infinities (which `encode` never writes) +-alpha.

    Raises:
      UserError: when the codes are of another dtype.
    """
    fmt = get_format(fmt)
    codes, fmt = as_codes(jnp.asarray(codes), fmt)
    return _from_units(bits.decode(codes, fmt), alpha, fmt)


@functools.partial(jax.jit, static_argnames=("fmt",), inline=True)
def cell(x: jax.Array, alpha: jax.Array, fmt: str | Format) -> tuple[jax.Array, jax.Array]:
    """The values of the scaled grid around |x|: `low <= min(|x|, alpha) <= high`, up to float32 rounding.

    Where x lies on the grid, one of them is |x| (low, unless scaling falls a rounding short of it); both are alpha well
    beyond alpha. Stochastic rounding of x has the variance `(|x| - low) * (high - |x|)`.

    Returns:
      Two float32 arrays of the shape of `x`. Their gradients are zero.
    """
    fmt = get_format(fmt)
    low, high = bits.neighbors(_to_units(x, alpha, fmt), fmt)
    return _from_units(low, alpha, fmt), _from_units(high, alpha, fmt)
