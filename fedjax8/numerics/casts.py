"""Saturating casts between float32 and the small formats, rounding to nearest with ties to even.

    cast(x)          = the 8-bit float nearest to min(max(x, -fmt.max), fmt.max)
    round_to_grid(x) = the same number as float32
    to_float32(x8)   = the exact value of an 8-bit float

Infinities saturate, NaN stays NaN, and nothing above `fmt.max` turns into NaN or infinity as it does in a plain
`astype`. In the fnuz formats, which have no negative zero, everything that rounds to zero gives +0. All have gradient
zero; `straight_through` holds the versions to train through.

There are two forms, with the same bits (tested on every class of input):

- "bits", integer arithmetic (`bits`). On CPU about three times as fast for a cast and five for a round trip.
- "native", XLA's own conversion.

"auto" casts natively on accelerators and by bits on CPU, decided when the program is lowered, for the platform it is
lowered for. `round_to_grid` and `to_float32` are by bits everywhere by default: they are bound by memory on
accelerators too, and XLA for GPU, under its default `xla_allow_excess_precision`, deletes pairs of conversions such as
float32 -> float8 -> float32 and the rounding with them (openxla/xla issue 41605). For the same reason the native cast
ends in an optimization barrier, so that a later `astype` cannot be paired with it.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.errors import UserError
from fedjax8.numerics import bits
from fedjax8.numerics.formats import Format, get_format

FORMS = ("auto", "native", "bits")


def check_form(form: str) -> None:
    """Raises UserError unless `form` is one of `FORMS`."""
    if form not in FORMS:
        raise UserError(f"form={form!r} is not one of {', '.join(FORMS)}")


def as_storage(codes: jax.Array, fmt: Format) -> jax.Array:
    """The array type that codes (uint8) of `fmt` travel in: the native 8-bit float, or uint8 for narrower formats."""
    return lax.bitcast_convert_type(codes, fmt.dtype) if fmt.bits == 8 else codes


def as_codes(x: jax.Array, fmt: Format | None = None) -> tuple[jax.Array, Format]:
    """The uint8 codes inside an array made by `as_storage`, and its format (`fmt` is needed for uint8 arrays only)."""
    if x.dtype == jnp.uint8:
        if fmt is None:
            raise UserError("an array of uint8 codes has no number format of its own: pass fmt, such as 'e4m3fn'")
        return x, fmt
    if fmt is None:
        fmt = get_format(x.dtype.name.removeprefix("float8_"))
    if x.dtype != fmt.dtype:
        raise UserError(f"got an array of {x.dtype.name} where {fmt.name} asks for {fmt.dtype.name} or uint8")
    return lax.bitcast_convert_type(x, jnp.uint8), fmt


@functools.partial(jax.jit, static_argnames=("fmt", "form"), inline=True)
def cast(x: jax.Array, fmt: str | Format, form: str = "auto") -> jax.Array:
    """`x` in the 8-bit format: saturating, to nearest, ties to even.

    Args:
      x: any shape, float32 (other types are converted to it).
      fmt: a name of `FORMATS` or a `Format`.
      form: "auto", "native" or "bits", see the module text; the result is the same.

    Returns:
      An array of dtype `fmt.dtype`; for formats narrower than 8 bits, uint8 codes (always by bits).

    Example:
      >>> float(cast(jnp.float32(1e6), "e4m3fn"))
      448.0
    """
    fmt = get_format(fmt)
    check_form(form)
    x = lax.stop_gradient(jnp.asarray(x, jnp.float32))

    def by_bits(x: jax.Array) -> jax.Array:
        return as_storage(bits.nearest_codes(x, fmt), fmt)

    def native(x: jax.Array) -> jax.Array:
        return lax.optimization_barrier(jnp.clip(x, -fmt.max, fmt.max).astype(fmt.dtype))

    if form == "bits" or fmt.bits != 8:
        return by_bits(x)
    if form == "native":
        return native(x)
    return lax.platform_dependent(x, cpu=by_bits, default=native)


@functools.partial(jax.jit, static_argnames=("fmt", "form"), inline=True)
def round_to_grid(x: jax.Array, fmt: str | Format, form: str = "auto") -> jax.Array:
    """`x` rounded to the nearest value of the format, as float32: `to_float32(cast(x, fmt))` in one pass.

    Args and errors are those of `cast`; NaN stays NaN in every format.

    Example:
      >>> float(round_to_grid(jnp.float32(1.1), "e4m3fn"))
      1.125
    """
    fmt = get_format(fmt)
    check_form(form)
    if form == "native" and fmt.bits == 8:
        return to_float32(cast(x, fmt, form), fmt, form)
    return bits.nearest_values(lax.stop_gradient(jnp.asarray(x, jnp.float32)), fmt)


@functools.partial(jax.jit, static_argnames=("fmt", "form"), inline=True)
def to_float32(x8: jax.Array, fmt: str | Format | None = None, form: str = "auto") -> jax.Array:
    """The exact float32 values of an array of 8-bit floats, or of uint8 codes in the format `fmt`.

    Infinities and NaNs come out as such.

    Example:
      >>> float(to_float32(jnp.uint8(0x7E), "e4m3fn"))
      448.0
    """
    check_form(form)
    codes, fmt = as_codes(jnp.asarray(x8), fmt if fmt is None else get_format(fmt))
    codes = lax.stop_gradient(codes)
    if form == "native" and fmt.bits == 8:
        return as_storage(codes, fmt).astype(jnp.float32)
    return bits.decode(codes, fmt)
