"""Packing of unsigned codes of 1 to 32 bits into bytes, as they are counted and sent.

Layout: code i fills bits i * bits ... (i + 1) * bits - 1 of the stream; bit 0 of the stream is the least significant
bit of byte 0; the unused high bits of the last byte are zero. ceil(n * bits / 8) bytes for n codes.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.errors import UserError


def packed_size(count: int, bits: int) -> int:
    """Number of bytes that `count` codes of `bits` bits pack into, a Python integer.

    Example:
      >>> packed_size(10, 3)
      4
    """
    return (count * bits + 7) // 8


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 32:
        raise UserError(f"bits={bits} is out of range: codes of 1 to 32 bits can be packed")


def _code_dtype(bits: int) -> type:
    """uint8 where it holds a code, since narrow integers are faster, else uint32."""
    return np.uint8 if bits <= 8 else np.uint32


def _group(bits: int) -> int:
    """The fewest codes that fill whole bytes. XLA computes each of them anew for every byte that it reaches into."""
    return 8 // math.gcd(bits, 8)


def _shift(x: jax.Array, left: int) -> jax.Array:
    """x << left within the width of x, to the right when `left` is negative."""
    return x << x.dtype.type(left) if left >= 0 else x >> x.dtype.type(-left)


@functools.partial(jax.jit, static_argnames=("bits",), inline=True)
def pack_bits(codes: jax.Array, bits: int) -> jax.Array:
    """`codes` as a dense stream of bytes.

    Args:
      codes: unsigned integers of any shape, flattened in row-major order; bits above the lowest `bits` are dropped.
      bits: 1 to 32, static.

    Returns:
      uint8 [packed_size(n, bits)].

    Raises:
      UserError: for bits outside 1 to 32.

    Example:
      >>> pack_bits(jnp.array([1, 2, 3], jnp.uint8), 2)  # 0b111001
      Array([57], dtype=uint8)
    """
    _check_bits(bits)
    dtype = _code_dtype(bits)
    codes = codes.astype(dtype).reshape(-1)
    if bits == 8:
        return codes
    count, group = codes.size, _group(bits)
    codes = jnp.pad(codes & dtype((1 << bits) - 1), (0, -count % group)).reshape(-1, group)
    columns = []
    for byte in range(group * bits // 8):
        first, last = 8 * byte // bits, (8 * byte + 7) // bits
        parts = [_shift(codes[:, i], i * bits - 8 * byte) for i in range(first, last + 1)]
        columns.append(functools.reduce(jnp.bitwise_or, parts).astype(jnp.uint8))
    return jnp.stack(columns, axis=-1).reshape(-1)[: packed_size(count, bits)]


@functools.partial(jax.jit, static_argnames=("bits", "count"), inline=True)
def unpack_bits(packed: jax.Array, bits: int, count: int) -> jax.Array:
    """The first `count` codes of a stream made by `pack_bits`.

    Args:
      packed: uint8 [packed_size(count, bits)].
      bits, count: static.

    Returns:
      uint8 [count] for up to 8 bits, uint32 [count] for more.

    Raises:
      UserError: for bits outside 1 to 32, or a stream of the wrong length.
    """
    _check_bits(bits)
    if packed.shape != (packed_size(count, bits),):
        raise UserError(
            f"{count} codes of {bits} bits fill {packed_size(count, bits)} bytes; got an array of shape {packed.shape}"
        )
    if bits == 8:
        return packed
    dtype, group = _code_dtype(bits), _group(bits)
    width = group * bits // 8
    packed = jnp.pad(packed, (0, -packed.size % width)).reshape(-1, width).astype(dtype)
    columns = []
    for i in range(group):
        first, last = i * bits // 8, (i * bits + bits - 1) // 8
        parts = [_shift(packed[:, byte], 8 * byte - i * bits) for byte in range(first, last + 1)]
        columns.append(functools.reduce(jnp.bitwise_or, parts) & dtype((1 << bits) - 1))
    return jnp.stack(columns, axis=-1).reshape(-1)[:count]
