"""The shared core: a sequential scan over chunks of clients, each chunk vmapped, reduced as they come."""

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.types import ClientMap, Partial, PyTree


def leading(per_client: PyTree) -> int:
    """The number of clients `C` in a tree of leaves `[C, ...]`."""
    return jax.tree.leaves(per_client)[0].shape[0]


def groups(count: int, chunk: int) -> int:
    """Number of groups, of at most `chunk` clients each, for `count` clients of one device.

    As few as possible; `padded` makes them equally large.
    """
    return -(-count // chunk)


def padded(count: int, chunk: int) -> int:
    """The smallest number of clients from `count` on that divides into equal groups of at most `chunk`."""
    parts = max(1, groups(count, chunk))
    return parts * max(1, -(-count // parts))


def at_once(count: int, chunk: int) -> int:
    """Number of `count` clients that a device works on at once, where it may work on `chunk`."""
    return padded(count, chunk) // max(1, groups(count, chunk))


def reduce_chunk(f: ClientMap, shared: PyTree, chunk: PyTree) -> tuple[Partial, PyTree]:
    """`f` vmapped over one chunk: (its reduction, stacked rest)."""
    partial, kept = jax.vmap(f, in_axes=(None, 0))(shared, chunk)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), partial.sum)
    return Partial(total, jax.tree.map(lambda x: jnp.max(x, axis=0), partial.max)), kept


def scan_map_reduce(f: ClientMap, shared: PyTree, per_client: PyTree, chunk: int) -> tuple[Partial, PyTree]:
    """(reduction of `f(shared, client)[0]`, stacked `f(shared, client)[1]`), at most `chunk` clients at once.

    Memory holds one running reduction and one group, whatever `C` is. Where groups are of one client nothing is
    vmapped, so that a client's kernels stay plain kernels.
    """
    count = leading(per_client)
    if padded(count, chunk) != count:
        raise ValueError(f"{count} clients do not divide into {groups(count, chunk)} groups of at most {chunk}")
    chunk = count // groups(count, chunk)
    if chunk == 1:
        step, parts = f, per_client
    else:
        step = lambda shared, part: reduce_chunk(f, shared, part)
        parts = jax.tree.map(lambda x: x.reshape(count // chunk, chunk, *x.shape[1:]), per_client)

    def body(total, part):
        partial, kept = step(shared, part)
        return Partial(trees.add(total.sum, partial.sum), jax.tree.map(jnp.maximum, total.max, partial.max)), kept

    one_part = lambda: jax.tree.map(lambda x: x[0], parts)
    shape = jax.eval_shape(lambda: step(shared, one_part())[0])
    nothing = Partial(trees.zeros_like(shape.sum), jax.tree.map(lambda x: jnp.full(x.shape, -jnp.inf), shape.max))
    total, kept = jax.lax.scan(body, nothing, parts)
    if chunk > 1:
        kept = jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), kept)
    return total, kept
