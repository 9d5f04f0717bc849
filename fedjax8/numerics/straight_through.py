"""Rounding that can be trained through: the rounded value forward, a chosen derivative backward.

Weights and activations, `fake_quantize`: Q(x; alpha) is the nearest value of the grid scaled to alpha (`scales`).
Rounding itself passes the derivative through unchanged and the exponent counts as a constant, but the step still grows
with alpha; element by element that leaves

    dQ/dx     = 1                     if |x| <= alpha, else 0
    dQ/dalpha = (Q(x) - x) / alpha    if |x| <= alpha, else sign(x)

The rule is that of Kuzmin et al., "FP8 Quantization: The Power of the Exponent" (arXiv 2208.09225); these closed forms
of it are inferred, and tested against automatic differentiation of the formula with log2 and exp2.

Gradients, `quantize_gradient`: the identity forward; the cotangent is rounded to a small format on its way back, as if
the backward pass ran in 8 bits. That e5m2 is the format for gradients is the custom of Micikevicius et al., "FP8
Formats for Deep Learning" (arXiv 2209.05433); one scale per tensor from its own max |g| is a project choice.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax8.errors import UserError
from fedjax8.numerics.formats import Format, get_format
from fedjax8.numerics.scales import decode, encode, floor_alpha, max_abs, quantize


def fake_quantize(x: jax.Array, alpha: jax.Array, fmt: str | Format) -> jax.Array:
    """Q(x; alpha) in float32, differentiable in `x` and in the clipping value.

    Args:
      x: any shape, float32.
      alpha: float32 scalar, floored at MIN_ALPHA. The gradient passes the floor, so an alpha that fell below it can
        recover.
      fmt: a name of `FORMATS` or a `Format`.

    Returns:
      float32 of the shape of `x`, bit for bit `quantize(x, alpha, fmt)`. The forward pass is one loop. The backward
      pass keeps `x` and `alpha`, nothing else, and rounds again instead of storing Q(x) or masks.

    Raises:
      UserError: when alpha is not a scalar.

    Example:
      >>> jax.grad(fake_quantize, argnums=1)(jnp.float32(3.0), jnp.float32(2.0), "e4m3fn")  # clipped: sign(x)
      Array(1., dtype=float32)
    """
    if jnp.ndim(alpha) != 0:
        raise UserError(f"alpha has shape {jnp.shape(alpha)}; fake_quantize takes one scalar per tensor")
    return _fake_quantize(get_format(fmt), jnp.asarray(x, jnp.float32), jnp.asarray(alpha, jnp.float32))


def pass_through(
    x: jax.Array, rounded: jax.Array, alpha: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The gradients for x and alpha, given that of `rounded` = Q(x; alpha), by the rule above.

    Returns:
      float32 of the shape of `x`, and a float32 scalar.
    """
    alpha = floor_alpha(alpha)
    inside = jnp.abs(x) <= alpha
    # Outside, rounded is sign(x) * alpha, so one division after the sum serves both branches. The select is the last
    # operation before the sum for the reason given in scales._from_units: three times faster on CPU.
    terms = jnp.where(inside, cotangent * (rounded - x), cotangent * rounded)
    dalpha = jnp.sum(terms) / alpha
    return passed(x, alpha, cotangent), dalpha


def passed(x: jax.Array, alpha: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The gradient for x alone: the cotangent, and 0 outside of the clip."""
    return jnp.where(jnp.abs(x) <= floor_alpha(alpha), cotangent, jnp.zeros_like(cotangent))


def clip_terms(x: jax.Array, rounded: jax.Array, alpha: jax.Array) -> jax.Array:
    """alpha * dQ/dalpha, float32 of the shape of `x`, for `rounded` = Q(x; alpha).

    For a product that sums them over a cotangent which is never written. `pass_through`, which has it, takes the same
    rule in the form that is fastest to sum.
    """
    return jnp.where(jnp.abs(x) <= floor_alpha(alpha), rounded - x, rounded)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _fake_quantize(fmt: Format, x: jax.Array, alpha: jax.Array) -> jax.Array:
    return quantize(x, alpha, fmt)


def _fake_quantize_forward(fmt: Format, x: jax.Array, alpha: jax.Array):
    return quantize(x, alpha, fmt), (x, alpha)


def _fake_quantize_backward(fmt: Format, saved: tuple[jax.Array, jax.Array], cotangent: jax.Array):
    x, alpha = saved
    return pass_through(x, quantize(x, alpha, fmt), alpha, cotangent)


_fake_quantize.defvjp(_fake_quantize_forward, _fake_quantize_backward)


def quantize_gradient(x: jax.Array, fmt: str | Format = "e5m2", key: jax.Array | None = None) -> jax.Array:
    """`x` itself; its gradient is rounded to the format, scaled so that its largest magnitude is kept exactly.

    Args:
      x: any shape, float32.
      fmt: a name of `FORMATS` or a `Format`.
      key: one typed key for unbiased stochastic rounding, None for nearest. Under vmap each example has its own scale,
        and needs its own key.

    Example:
      >>> float(jax.grad(lambda x: 1.1 * quantize_gradient(x))(1.0))  # one element: its own maximum, kept
      1.1...
    """
    return _quantize_gradient(get_format(fmt), jnp.asarray(x, jnp.float32), key)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _quantize_gradient(fmt: Format, x: jax.Array, key: jax.Array | None) -> jax.Array:
    return x


def _quantize_gradient_forward(fmt: Format, x: jax.Array, key: jax.Array | None):
    return x, key


def _quantize_gradient_backward(fmt: Format, key: jax.Array | None, cotangent: jax.Array):
    alpha = max_abs(cotangent)
    if key is None:
        return quantize(cotangent, alpha, fmt), None
    return decode(encode(cotangent, alpha, fmt, key), alpha, fmt), None


_quantize_gradient.defvjp(_quantize_gradient_forward, _quantize_gradient_backward)
