"""Stochastic rounding: up or down to the two neighbors on the grid, so that the mean is the value itself.

    Q(x) = lower + step * [u < (x - lower) / step],   u uniform,   E[Q(x)] = clip(x, -fmt.max, fmt.max)

with lower the grid value next below |x| (the sign is put back afterwards), step the distance to the one above.

Guarantees
- The result is one of the two neighbors; a value on the grid stays where it is, whatever the key.
- Variance step**2 * f * (1 - f) for the fraction f, at most step**2 / 4.
- The probability of going up is the fraction rounded to 20 bits (M = 3; 21 bits for M = 2): exact for normal numbers,
  whose float32 patterns hold no more bits than that, and within 2**-21 for subnormal ones.
- A value close to a grid point counts as that point: within 2**-18 |x| of it for subnormal numbers, within 2**-18 of
  the power of two below |x| for normal ones. Values that were on a scaled grid and then passed through a few float32
  operations (decoding, averaging equal contributions) therefore return to their codes: a chain of K roundings is off
  by at most K * 2**-24 |x|, so there is room for thirty. The price is a bias of at most 2**-18 |x|, which has either
  sign and cancels over uniformly distributed fractions.
- Saturates at +-fmt.max; NaN stays NaN; no negative zero in the fnuz formats.

The form is the only unbiased one with two neighbors. Unbiased messages of Wang et al., "Towards Federated Learning
with On-device Training and Communication in 8-bit Floating Point" (arXiv 2407.02610), are known from second hand; the
formula is inferred.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.numerics import bits
from fedjax8.numerics.casts import as_storage
from fedjax8.numerics.dither import hash_bits
from fedjax8.numerics.formats import Format, get_format


@functools.partial(jax.jit, static_argnames=("fmt",), inline=True)
def stochastic_round(key: jax.Array, x: jax.Array, fmt: str | Format, offset: int | jax.Array = 0) -> jax.Array:
    """`x` on the grid of the format as float32, rounded up or down at random without bias.

    Args:
      key: one typed key, used once (or once per range of offsets).
      x: any shape, float32 (other types are converted to it).
      fmt: a name of `FORMATS` or a `Format`.
      offset: index of the first element in the key's sequence, for leaf-by-leaf use of one key.

    Returns:
      float32 of the shape of `x`. Its gradient is zero.

    Example:
      >>> float(stochastic_round(jax.random.key(0), jnp.float32(1.05), "e4m3fn")) in (1.0, 1.125)
      True
    """
    fmt = get_format(fmt)
    x = lax.stop_gradient(jnp.asarray(x, jnp.float32))
    return bits.stochastic_values(x, hash_bits(key, x.shape, offset), fmt)


@functools.partial(jax.jit, static_argnames=("fmt",), inline=True)
def stochastic_cast(key: jax.Array, x: jax.Array, fmt: str | Format, offset: int | jax.Array = 0) -> jax.Array:
    """The values of `stochastic_round` (same key, same draws) as an array of the 8-bit dtype.

    Formats narrower than 8 bits give uint8 codes.
    """
    fmt = get_format(fmt)
    x = lax.stop_gradient(jnp.asarray(x, jnp.float32))
    return as_storage(bits.stochastic_codes(x, hash_bits(key, x.shape, offset), fmt), fmt)
