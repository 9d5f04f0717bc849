"""Helpers of aggregators: changes of all clients as one matrix, order statistics by coordinate, weighted sums."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax8.numerics.order import over_sorted_columns
from fedjax8.types import Array, PyTree


def as_matrix(changes: PyTree) -> tuple[Array, Callable[[Array], PyTree]]:
    """(float32 `[C, P]` of leaves `[C, ...]`, the way back for one row `[P]`)."""
    leaves, structure = jax.tree.flatten(changes)
    count = len(leaves[0])
    ends = [0]
    for leaf in leaves:
        ends.append(ends[-1] + leaf[0].size)

    def back(row: Array) -> PyTree:
        parts = [row[a:b].reshape(x.shape[1:]) for a, b, x in zip(ends, ends[1:], leaves, strict=False)]
        return jax.tree.unflatten(structure, parts)

    return jnp.concatenate([leaf.reshape(count, -1) for leaf in leaves], axis=1), back


def by_coordinate(rule: Callable[[Array, Array], Array], changes: PyTree, weights: Array) -> PyTree:
    """`rule(ascending values [C, p], n) -> [p]` for every coordinate, over the n clients of positive weight.

    Their values are the first n; those behind are infinite.
    """
    matrix, back = as_matrix(changes)
    counted = weights > 0
    values = jnp.where(counted[:, None], matrix, jnp.inf)
    count = jnp.sum(counted, dtype=jnp.int32)
    return back(over_sorted_columns(lambda block: rule(block, count), values))


def weighted_sum(factors: Array, changes: PyTree) -> PyTree:
    """sum_i factors[i] * change i, for factors `[C]`."""
    return jax.tree.map(lambda x: jnp.tensordot(factors, x, 1, precision="highest"), changes)
