"""Random keys of one kind, whatever JAX makes by default.

`JAX_DEFAULT_PRNG_IMPL` may name another generator. The same seed would then be another run, and `rbg` keys give other
numbers under `vmap` than one by one, on which results that do not depend on the executor rest.
"""

import jax

from fedjax8.types import Array, Key

GENERATOR = "threefry2x32"


def random_key(seed: int | Array) -> Key:
    """The key of a seed."""
    return jax.random.key(seed, impl=GENERATOR)


def as_key(words: Array) -> Key:
    """The key of its two words, uint32 `[2]`, the inverse of `jax.random.key_data`."""
    return jax.random.wrap_key_data(words, impl=GENERATOR)
