"""Bounded norms and Gaussian noise on trees.

    clip(x; C) = x min(1, C / |x|),   |x| the Euclidean norm over all leaves together

A tree with a value that is not finite is clipped to zeros, so that nothing a unit does can exceed its bound.

Noise is `jax.random.normal` from threefry keys, never from `numerics.dither`, whose hash is no cryptography. It is
float32: the attack on the rounding of noise (Mironov 2012) is not addressed. It follows from the run's seed, so whoever
knows the seed can subtract it: guarantees are about a run whose seed is secret, and a simulator's 32-bit seed only
stands for one.
"""

import jax
import jax.numpy as jnp

from fedjax8.errors import UserError
from fedjax8.types import Array, Key, PyTree


def norm_of(tree: PyTree) -> Array:
    """float32 Euclidean norm over all leaves; infinite if a value isn't finite or the norm has no float32."""
    squares = sum(jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(tree))
    norm = jnp.sqrt(squares)
    return jnp.where(jnp.isfinite(norm), norm, jnp.inf)


def factor_of(norm: Array, bound: Array | float) -> Array:
    """What `clip` multiplies a tree of this norm by: 0 where the norm is infinite."""
    return jnp.minimum(1.0, bound / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))


def clip(tree: PyTree, bound: Array | float, norm: Array | None = None) -> PyTree:
    """`tree` with a norm of at most `bound`, up to float32 rounding; zeros where its norm is infinite.

    `norm` is worked out if it is not given.
    """
    norm = norm_of(tree) if norm is None else norm
    factor = factor_of(norm, bound)
    return jax.tree.map(lambda x: jnp.where(jnp.isinf(norm), 0.0, factor * x), tree)


def add_noise(key: Key, tree: PyTree, deviation: Array | float) -> PyTree:
    """`tree` with independent N(0, deviation^2) on every value.

    Raises:
      UserError: for a key that isn't of threefry, the only generator here that is meant to be unpredictable.
    """
    kind = str(jax.random.key_impl(key))
    if "threefry" not in kind:
        raise UserError(f"noise for privacy needs threefry keys, jax's default; got {kind}")
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(len(leaves), 1))
    noised = [x + deviation * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, noised)
