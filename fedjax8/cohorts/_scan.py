"""The shared core: a sequential scan over chunks of clients, each chunk vmapped, sums accumulated as they come."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.types import PyTree


def leading(per_client: PyTree) -> int:
    """The number of clients `C` in a tree of leaves `[C, ...]`."""
    return jax.tree.leaves(per_client)[0].shape[0]


def sum_chunk(f: Callable, shared: PyTree, chunk: PyTree) -> tuple[PyTree, PyTree]:
    """`f` vmapped over one chunk: (sum over it, stacked rest)."""
    summed, kept = jax.vmap(f, in_axes=(None, 0))(shared, chunk)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), summed), kept


def scan_map_reduce(f: Callable, shared: PyTree, per_client: PyTree, chunk: int) -> tuple[PyTree, PyTree]:
    """(sum of `f(shared, client)[0]`, stacked `f(shared, client)[1]`), `chunk` clients at once.

    Memory holds one running sum and one chunk, whatever `C` is. With `chunk` 1 nothing is vmapped, so that a client's
    kernels stay plain kernels.
    """
    count = leading(per_client)
    if count % chunk:
        raise ValueError(f"{count} clients do not divide into chunks of {chunk}")
    if chunk == 1:
        step, parts = f, per_client
    else:
        step = lambda shared, part: sum_chunk(f, shared, part)
        parts = jax.tree.map(lambda x: x.reshape(count // chunk, chunk, *x.shape[1:]), per_client)

    def body(total, part):
        summed, kept = step(shared, part)
        return trees.add(total, summed), kept

    one_part = lambda: jax.tree.map(lambda x: x[0], parts)
    zero = trees.zeros_like(jax.eval_shape(lambda: step(shared, one_part())[0]))
    total, kept = jax.lax.scan(body, zero, parts)
    if chunk > 1:
        kept = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), kept)
    return total, kept
