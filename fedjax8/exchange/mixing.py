"""Workers on a graph: the weighted mean of a worker's own tree and those that it hears.

    mixed_i = (w_ii + sum over j that are not heard of w_ij) own_i + sum over j that are heard of w_ij decoded_j

A neighbor is not heard in a round if it dropped out or its tree cannot be used; its weight goes to the worker's own
tree, so that weights still sum to 1, and a symmetric graph stays symmetric if both are not heard. `own_i` is decoded
too: all who hear a tree take the same values.

Every shard holds the decoded trees of all workers, `[n, ...]`, and mixes those of its own. Graphs of few neighbors are
gathered neighbor by neighbor; where there are many, a shard's part of W is a matrix `[c, n]`.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.topologies import base
from fedjax8.types import Array, Executor, Graph, PyTree, Receive

DENSE = 24
"""Neighbors from which on a product with a matrix is faster than gathering."""


def rows_of(graph: Graph, ids: Array) -> Graph:
    """The rows `[c]` of these workers; for padding, those of the last worker."""
    at = jnp.minimum(ids, len(graph.own) - 1)
    neighbors, weights, own = (jnp.asarray(x)[at] for x in graph)
    return Graph(neighbors, weights, own)


def out_degrees(graph: Graph, ids: Array) -> Array:
    """int32 `[c]`: how many others hear each of these workers; 0 for padding."""
    n = len(graph.own)
    degrees: Array = jnp.where(ids < n, base.out_degrees(graph)[jnp.minimum(ids, n - 1)], 0)
    return degrees


def mixed(executor: Executor, graph: Graph, ids: Array, decoded: PyTree, heard: Array) -> PyTree:
    """float32 `[c, ...]`: the weighted means of this shard's workers `ids`, from their trees `[c, ...]`, and whether
    each is heard, bool `[c]`, on all shards."""
    n = len(graph.own)
    every_tree, all_ids, all_heard = executor.gather((decoded, ids, heard))
    place = _places(all_ids, n)
    is_heard = jnp.zeros(n + 1, bool).at[jnp.minimum(all_ids, n)].set(all_heard)
    rows = rows_of(graph, ids)
    weights = jnp.where(is_heard[rows.neighbors], rows.weights, 0.0)
    own = rows.own + jnp.sum(rows.weights - weights, axis=1)
    at = place[rows.neighbors]
    if at.shape[1] >= DENSE:
        return _by_matrix(every_tree, decoded, at, weights, own)
    return _by_neighbor(every_tree, decoded, at, weights, own)


def received(receive: Receive, memory: PyTree, own: PyTree, mean: PyTree, heard: Array) -> tuple[PyTree, Array]:
    """(memories `[c, ...]` after `receive`, bool `[c]`: those that keep the memory they had, since the new one cannot
    be used); a worker that is not heard keeps it too."""
    after = jax.vmap(receive)(memory, own, mean)
    usable = jax.vmap(trees.within_bounds)(after)
    keeps = heard & usable
    return jax.tree.map(lambda new, old: jnp.where(_wide(keeps, old), new, old), after, memory), heard & ~usable


def _by_neighbor(every_tree: PyTree, decoded: PyTree, at: Array, weights: Array, own: Array) -> PyTree:
    def mean(every: Array, mine: Array) -> Array:
        total = _wide(own, mine) * mine
        for i in range(at.shape[1]):
            total += _wide(weights[:, i], mine) * every[at[:, i]]
        return total

    return jax.tree.map(mean, every_tree, decoded)


def _by_matrix(every_tree: PyTree, decoded: PyTree, at: Array, weights: Array, own: Array) -> PyTree:
    count = jax.tree.leaves(every_tree)[0].shape[0]
    whole = jnp.zeros((len(own), count)).at[jnp.arange(len(own))[:, None], at].add(weights)

    def mean(every: Array, mine: Array) -> Array:
        heard = jnp.dot(whole, every.reshape(count, -1), precision=jax.lax.Precision.HIGHEST)
        return _wide(own, mine) * mine + heard.reshape(mine.shape)

    return jax.tree.map(mean, every_tree, decoded)


def _places(ids: Array, n: int) -> Array:
    """int32 `[n + 1]`: where each of `n` workers stands among `ids`; the last is padding's."""
    return jnp.zeros(n + 1, jnp.int32).at[jnp.minimum(ids, n)].set(jnp.arange(len(ids), dtype=jnp.int32))


def _wide(values: Array, like: Array) -> Array:
    """`[c]` against leaves `[c, ...]`."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def arrivals(executor: Executor, graph: Graph, ids: Array, sent: Any) -> tuple[Array, Array]:
    """(float32 `[c]`: when each of these workers has all trees that it hears; float32 `[c]`: seconds in which it sends
    or receives).

    `sent` has of each worker `[c]`: the time at which its tree is ready, its latency, the bytes that it sends to each
    neighbor, its rates up and down, and whether it sends. A worker's link is shared evenly by its edges, and an edge
    has the slower of its two ends: t_j + latency_j + latency_i + bytes_j / min(up_j / out_j, down_i / in_i).
    """
    n = len(graph.own)
    rows, out = rows_of(graph, ids), out_degrees(graph, ids)
    sent = tuple(jnp.asarray(x) for x in sent)
    (ready, latency, size, up, _, sends), all_ids, all_out = executor.gather((sent, ids, out))
    place = _places(all_ids, n)
    at = place[rows.neighbors]
    there = (rows.weights > 0) & sends[at]
    own_ready, own_latency, own_size, own_up, own_down, own_sends = sent
    incoming = jnp.sum(there, axis=1)
    of_edge = jnp.minimum(up[at] / jnp.maximum(all_out[at], 1), (own_down / jnp.maximum(incoming, 1))[:, None])
    arrives = ready[at] + latency[at] + own_latency[:, None] + size[at] / of_edge
    last = jnp.max(jnp.where(there, arrives, 0.0), axis=1, initial=0.0)
    received = jnp.sum(jnp.where(there, size[at], 0.0), axis=1) / own_down
    busy = jnp.maximum(jnp.where(own_sends, own_size * out / own_up, 0.0), received)
    return jnp.maximum(last, own_ready), busy
