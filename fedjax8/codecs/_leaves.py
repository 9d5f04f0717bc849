"""What quantizers of single leaves share: which leaves they take, their keys, what they measure.

A leaf is encoded if it is float32, not empty, no clip, and has at least `min_ndim` dimensions and `min_size` elements.
Every other leaf is sent as it is.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax8 import fusion, trees
from fedjax8.keys import as_key
from fedjax8.numerics import hash_bits, uniform
from fedjax8.types import Array, Codec, Key, PyTree, Ratio


def leafwise(
    encode_leaf: Callable[[Key, Array], PyTree],
    decode_leaf: Callable[[PyTree], Array],
    message: type,
    *,
    min_ndim: int,
    min_size: int,
    unbiased: bool,
    error_bound: Callable[[Array], Array] | None = None,
) -> Codec:
    """Codec that encodes every large enough leaf by itself.

    Args:
      encode_leaf: `(key, float32 leaf) -> message`; every leaf is given its own key.
      decode_leaf: `message -> float32 leaf`.
      message: class of what `encode_leaf` makes.
      min_ndim, min_size: see the module's text.
      unbiased: whether E[decode_leaf(encode_leaf(key, x))] = x.
      error_bound: leaf to the largest |decoded - x| per element.

    Measures `quantization_error`: squared error over squared norm, of all encoded leaves.
    """
    for name, given in (("min_ndim", min_ndim), ("min_size", min_size)):
        if given < 0:
            raise ValueError(f"{name} must be at least 0; got {given}")

    # Compiled leaf by leaf where they are called outside of a compiled function.
    encode_leaf, decode_leaf = jax.jit(encode_leaf, inline=True), jax.jit(decode_leaf, inline=True)

    def takes(name: str, x: Array) -> bool:
        large = x.ndim >= min_ndim and x.size >= max(min_size, 1)
        return trees.is_float32(x) and large and not trees.is_clip(name)

    def encode_apart(key, x):
        return fusion.apart(encode_leaf, jax.random.key_data(key).reshape(-1)[0], key, x)

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
        return trees.map_named(lambda name, x: bound_of(x) if takes(name, x) else jnp.zeros_like(x), tree)

    def measure(tree, decoded):
        leaves, got = trees.named_leaves(tree), trees.named_leaves(decoded)
        taken = [name for name, x in leaves.items() if takes(name, x)]
        if not taken:
            return {}
        error = jnp.asarray(sum(trees.squared_distance(got[n], leaves[n]) for n in taken))
        return {"quantization_error": Ratio(error, jnp.asarray(sum(jnp.sum(jnp.square(leaves[n])) for n in taken)))}

    return Codec(lambda tree: (), encode, decode, unbiased, bound if error_bound else None, measure)


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


def divided(x: Array, by: Array) -> Array:
    """x / by, and 0 where `by` is zero or so small that processors may take it for zero (subnormal)."""
    nothing = jnp.abs(by) < jnp.finfo(jnp.float32).tiny
    return jnp.where(nothing, 0.0, x / jnp.where(nothing, 1.0, by))


def largest_magnitude(x: Array, axis: int | None = None) -> Array:
    """max|x|; NaN where a NaN or an infinity is among the values.

    Without an axis in the form of `numerics.max_abs`, for its reasons, but without its floor.
    """
    return jnp.maximum(jnp.max(x, axis), -jnp.min(x, axis)) + jnp.sum(x - x, axis)


def l2_norm(x: Array, axis: int | None = None) -> Array:
    """Euclidean norm that neither overflows nor underflows on the way: max|x| ||x / max|x| ||."""
    largest = largest_magnitude(x, axis)
    unit = divided(x, largest if axis is None else jnp.expand_dims(largest, axis))
    return largest * jnp.sqrt(jnp.sum(jnp.square(unit), axis))


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
    """uint32 `[2]`, drawn from the key: what a message carries of the sender's randomness."""
    return hash_bits(key, 2)


def key_in(words: Array) -> Key:
    """The typed key that both sides make of `message_key`'s words."""
    return as_key(words)
