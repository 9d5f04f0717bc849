"""Helpers of quantizers that encode leaf by leaf: choice of leaves, keys, measures.

A leaf is encoded if it is float32, not empty, no clip, and has at least `min_ndim` dimensions and `min_size` elements.
Every other leaf is sent as it is.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8 import trees, xla_cpu
from fedjax8.keys import random_key
from fedjax8.numerics import hash_bits, uniform
from fedjax8.types import Array, Codec, Key, PyTree, Ratio

TINY, LARGEST = (np.float32(x) for x in (np.finfo(np.float32).tiny, np.finfo(np.float32).max))
"""The smallest normal and the largest float32."""


def leafwise(
    encode_leaf: Callable[[Key, Array], PyTree],
    decode_leaf: Callable[[PyTree], Array],
    message: type,
    *,
    min_ndim: int,
    min_size: int,
    unbiased: bool,
    error_bound: Callable[[Array], Array] | None = None,
    contracts: bool = False,
    aligned: bool = False,
) -> Codec:
    """Codec that encodes every large enough leaf by itself.

    Args:
      encode_leaf: `(key, float32 leaf) -> message`; every leaf is given its own key.
      decode_leaf: `message -> float32 leaf`.
      message: class of a leaf's message.
      min_ndim, min_size: see the module's text.
      unbiased: whether E[decode_leaf(encode_leaf(key, x))] = x.
      error_bound: leaf to the largest |decoded - x| per element, to within the smallest normal float32.
      contracts, aligned: see `Codec`.

    A leaf whose message would be no smaller than the leaf is sent as it is too.
    Measures `quantization_error`: squared error over squared norm, of all encoded leaves.
    """
    for name, given in (("min_ndim", min_ndim), ("min_size", min_size)):
        if given < 0:
            raise ValueError(f"{name} must be at least 0; got {given}")

    # Compiled leaf by leaf where they are called outside of a compiled function.
    encode_leaf, decode_leaf = jax.jit(encode_leaf, inline=True), jax.jit(decode_leaf, inline=True)

    @functools.cache
    def pays(shape: tuple[int, ...]) -> bool:
        leaf = jax.ShapeDtypeStruct(shape, jnp.float32)
        return trees.num_bytes(jax.eval_shape(lambda x: encode_leaf(random_key(0), x), leaf)) < trees.num_bytes(leaf)

    def takes(name: str, x: Array) -> bool:
        large = x.ndim >= min_ndim and x.size >= max(min_size, 1)
        return trees.is_float32(x) and large and not trees.is_clip(name) and pays(x.shape)

    def encode_apart(key, x):
        return xla_cpu.apart(encode_leaf, jax.random.key_data(key).reshape(-1)[0], key, x)

    def encode(key, state, tree):
        indices = {name: i for i, name in enumerate(trees.named_leaves(tree))}

        def one(name, x):
            return encode_apart(jax.random.fold_in(key, indices[name]), x) if takes(name, x) else x

        return trees.map_named(one, tree), state

    def is_message(x):
        return isinstance(x, message)

    def decode(state, sent):
        return jax.tree.map(lambda x: decode_leaf(x) if is_message(x) else x, sent, is_leaf=is_message)

    def bound(tree):
        bound_of = error_bound or jnp.zeros_like
        return trees.map_named(lambda name, x: bound_of(x) + TINY if takes(name, x) else jnp.zeros_like(x), tree)

    def measure(tree, decoded):
        leaves, got = trees.named_leaves(tree), trees.named_leaves(decoded)
        taken = [name for name, x in leaves.items() if takes(name, x)]
        if not taken:
            return {}
        error = jnp.asarray(sum(trees.squared_distance(got[n], leaves[n]) for n in taken))
        return {"quantization_error": Ratio(error, jnp.asarray(sum(jnp.sum(jnp.square(leaves[n])) for n in taken)))}

    bounded = bound if error_bound else None
    return Codec(lambda tree: (), encode, decode, unbiased, bounded, measure, contracts, aligned)


def check_one_of(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `given` is one of the allowed words."""
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {given!r}")


def check_bits(bits: int, most: int = 8) -> None:
    """Raises ValueError unless codes may have that many bits."""
    if bits not in range(1, most + 1):
        raise ValueError(f"bits must be a whole number from 1 to {most}; got {bits!r}")


def round_at_random(key: Key, t: Array) -> Array:
    """int32: `t` rounded up or down at random, E = t to within 2**-24. Whole numbers stay."""
    low = jnp.floor(t)
    return (low + (uniform(key, t.shape) < t - low)).astype(jnp.int32)


def within(x: Array) -> Array:
    """x, its infinities at the largest float32; NaN stays. For sums and products of finite values."""
    return jnp.clip(x, -LARGEST, LARGEST)


def divided(x: Array, by: Array) -> Array:
    """x / by, and 0 where `by` is zero or so small that processors may take it for zero (subnormal).

    Of a `by` above 2**125 a quarter is taken on both sides: XLA multiplies by 1 / by, which could be subnormal.
    """
    nothing = jnp.abs(by) < TINY
    share = jnp.where(jnp.abs(by) > np.float32(2.0**125), np.float32(0.25), np.float32(1.0))
    return jnp.where(nothing, 0.0, x * share / jnp.where(nothing, 1.0, by * share))


def unit_of(largest: Array) -> Array:
    """The power of two at or below `largest` >= 0; 1 for zero, subnormal numbers and NaN.

    At most 2**126, so that one over it is a normal number too.
    """
    exponent = lax.bitcast_convert_type(largest, jnp.int32) & np.int32(0x7F800000)
    unit = lax.bitcast_convert_type(jnp.minimum(exponent, np.int32(253 << 23)), jnp.float32)
    return jnp.where((exponent > 0) & jnp.isfinite(largest), unit, 1.0)


def half_power(count: int) -> int:
    """The smallest h with 2**h >= sqrt(count), so that a norm of `count` values times 2**-h is in their range."""
    return -(-max(count - 1, 0).bit_length() // 2)


def largest_magnitude(x: Array, axis: int | None = None) -> Array:
    """max|x|; NaN where a NaN or an infinity is among the values.

    Without an axis in the form of `numerics.max_abs`, for its reasons, but without its floor.
    """
    return jnp.maximum(jnp.max(x, axis), -jnp.min(x, axis)) + jnp.sum(x - x, axis)


def l2_norm(x: Array, axis: int | None = None) -> Array:
    """Euclidean norm that neither overflows nor underflows on the way: max|x| ||x / max|x| ||.

    At most the largest float32, which no |x| exceeds.
    """
    largest = largest_magnitude(x, axis)
    unit = divided(x, largest if axis is None else jnp.expand_dims(largest, axis))
    return within(largest * jnp.sqrt(jnp.sum(jnp.square(unit), axis)))


def into_rows(x: Array, width: int | None) -> Array:
    """The values of `x` in rows of `width`, or in one row, the last one filled up with zeros: `[rows, width]`."""
    width = min(width or x.size, x.size)
    return jnp.pad(x.reshape(-1), (0, -x.size % width)).reshape(-1, width)


def per_value(of_rows: Array, width: int | None, shape: tuple[int, ...]) -> Array:
    """One number per row of `into_rows`, `[rows]`, given to each of the row's values: an array of that shape."""
    size = math.prod(shape)
    wide = jnp.broadcast_to(of_rows[:, None], (of_rows.size, min(width or size, size)))
    return wide.reshape(-1)[:size].reshape(shape)


def message_key(key: Key) -> Array:
    """uint32 `[2]`, drawn from the key: the sender's randomness, as a message carries it."""
    return hash_bits(key, 2)
