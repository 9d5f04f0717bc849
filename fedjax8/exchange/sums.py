"""What clients add to a round's totals: numbers that a sum over clients can bear, and nothing of some clients."""

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.types import Array, PyTree


def summable(report: PyTree) -> PyTree:
    """Numbers for the log, no further from 0 than their sum over clients can bear."""

    def cut(x: Array) -> Array:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.clip(x, -trees.LARGEST_SUM, trees.LARGEST_SUM) if floating else x

    return jax.tree.map(lambda x: cut(jnp.asarray(x)), report)


def only_if(condition: Array, tree: PyTree) -> PyTree:
    """`tree` where the condition holds, zeros elsewhere."""
    return trees.select(condition, tree, trees.zeros_like(tree))
