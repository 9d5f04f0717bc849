"""Random bits by hashing a counter: as good as needed for dither, about a hundred times cheaper than threefry on CPU.

    bits[i] = mix(i + offset; k0, k1)        k0, k1 = two 32-bit words drawn from the key

`mix` is a bijection of 32-bit words for every (k0, k1): three rounds of xor-shift and multiplication with the constants
of Chris Wellons' `triple32` (prospecting for hash functions, github.com/skeeto/hash-prospector, public domain), the
second word entering between the first two rounds, so that two keys' sequences are not shifted copies of each other.

Element i depends on the key and on i + offset alone, hence: vmap over keys equals a loop over keys, the draw does not
depend on devices or chunks, and `hash_bits(key, 10, offset=5)` is `hash_bits(key, 15)[5:]`. One key can so serve a
whole tree, each leaf with the number of elements before it as its offset. The counter is taken modulo 2**32.

This is dither, not cryptography: do not use it for privacy noise.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.errors import UserError

_MULTIPLIERS = tuple(np.uint32(m) for m in (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB))


def hash_bits(key: jax.Array, shape: int | tuple[int, ...], offset: int | jax.Array = 0) -> jax.Array:
    """Uniform uint32 words of that shape.

    Args:
      key: one typed key (`jax.random.key`) of any implementation; batches of keys by vmap.
      shape: a shape, or a count n standing for (n,).
      offset: index of the first element, an integer or a scalar array; taken modulo 2**32.

    Raises:
      UserError: for more than 2**32 elements, where the counter would repeat.

    Example:
      >>> hash_bits(jax.random.key(0), (2, 3)).shape
      (2, 3)
    """
    shape = (shape,) if isinstance(shape, int | np.integer) else tuple(shape)
    count = math.prod(shape)
    if count > 1 << 32:
        raise UserError(f"shape {shape} asks for {count} random words; one key gives 2**32 at most: split the array")
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    if isinstance(offset, int):
        offset = jnp.uint32(offset % (1 << 32))
    # By rows and columns: XLA makes i of them too, but takes it out of the loop over clients, as an array to be read.
    columns = shape[-1] if shape else 1
    rows = lax.iota(jnp.uint32, count // max(columns, 1)) * np.uint32(columns)
    rows += jnp.asarray(offset).astype(jnp.uint32) + first
    word = (rows[:, None] + lax.iota(jnp.uint32, columns)).reshape(shape)
    word = (word ^ (word >> 17)) * _MULTIPLIERS[0]
    word = word ^ second
    word = (word ^ (word >> 11)) * _MULTIPLIERS[1]
    word = (word ^ (word >> 15)) * _MULTIPLIERS[2]
    return word ^ (word >> 14)


def uniform(key: jax.Array, shape: int | tuple[int, ...], offset: int | jax.Array = 0) -> jax.Array:
    """Uniform float32 in [0, 1): multiples of 2**-24 from the top bits of `hash_bits`, never 1.

    Example:
      >>> bool((uniform(jax.random.key(0), 1000) < 1).all())
      True
    """
    # By way of int32: CPUs convert signed integers to float faster than unsigned ones.
    return (hash_bits(key, shape, offset) >> 8).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-24)
