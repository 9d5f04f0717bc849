"""Gaussian noise on trees.

Noise is `jax.random.normal` from threefry keys, never from `numerics.dither`, whose hash is no cryptography. It is
float32: the attack on the rounding of noise (Mironov 2012) is not addressed. It follows from the run's seed, so whoever
knows the seed can subtract it: guarantees are about a run whose seed is secret, and a simulator's 32-bit seed only
stands for one.
"""

import jax

from fedjax8.errors import UserError
from fedjax8.types import Array, Key, PyTree


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
