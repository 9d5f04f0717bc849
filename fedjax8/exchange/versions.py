"""The last models as they were sent, for clients that started from one of them: a ring of trees.

ring[number % L] = the tree that version `number` was decoded to;      a client of age a has ring[(number - a) % L]
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.types import Array, PyTree

RING = "versions"
"""Key of the ring among the states of the downlink's channels."""


def empty(tree: PyTree, length: int) -> PyTree:
    """A ring of so many trees of these shapes, zeros."""
    return jax.tree.map(lambda x: np.zeros((length, *x.shape), x.dtype), tree)


def push(ring: PyTree, number: Array, tree: PyTree) -> PyTree:
    """The ring with the tree of version `number`."""
    return jax.tree.map(lambda kept, x: kept.at[number % len(kept)].set(x.astype(kept.dtype)), ring, tree)


def pick(ring: PyTree, number: Array, age: Array) -> PyTree:
    """The tree of version `number - age`; of the oldest one that is kept where that is older."""

    def of(kept: Array) -> Array:
        oldest = jnp.minimum(number, len(kept) - 1)
        return kept[(number - jnp.clip(age, 0, oldest)) % len(kept)]

    return jax.tree.map(of, ring)
