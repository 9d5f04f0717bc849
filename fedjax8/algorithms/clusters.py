"""Clusters of clients that hold a model together: who is in them, their mean of means, and what a ring costs.

Three parts of Ravnest (arXiv 2401.01728, of which the abstract and the authors' code were read) that a simulator can
hold. Its clusters train one model in slices, by a pipeline without bubbles; that is not here (`algorithms.delayed` has
its staleness), so that these functions plan and count, and no algorithm needs them: a mean of means with the right
weights is the flat mean.

    mean of cluster c:   y_c = sum_{i in c} w_i x_i / W_c,   W_c = sum_{i in c} w_i
    mean of all:         sum_c W_c y_c / sum_c W_c
    ring all-reduce:     each of n members sends, and receives, 2 (n - 1) / n of the reduced values
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.types import Array, PyTree

SHORTFALL = 100.0
"""Weight of missing memory beside the spread of speeds, as in the authors' code."""


def ring_all_reduce_bytes(num_bytes: int, members: int) -> int:
    """Bytes that each of `members` sends, and receives, to average `num_bytes` in a ring.

    The values are cut into as many segments as there are members, the last one padded; in 2 (n - 1) steps each member
    passes a segment on, half of the steps to add up and half to tell the sum. So n = 2 sends the values once, and a
    large ring twice. Patarasuk and Yuan 2009; the padding is inferred.

    >>> ring_all_reduce_bytes(1000, 2), ring_all_reduce_bytes(1000, 4), ring_all_reduce_bytes(1000, 1)
    (1000, 1500, 0)
    """
    if num_bytes < 0 or members < 1:
        raise ValueError(f"num_bytes must be at least 0 and members at least 1; got {num_bytes} and {members}")
    return 2 * (members - 1) * -(-num_bytes // members)


def two_level_mean(tree: PyTree, weights: Array, clusters: Array, num_clusters: int) -> tuple[PyTree, PyTree, Array]:
    """(mean, means of the clusters `[K, ...]`, weights of the clusters `[K]`) of leaves `[C, ...]` by `weights` `[C]`.

    `clusters` int32 `[C]` says where each client is. A cluster without weight has a mean of 0 and counts for nothing.
    """
    total = jax.ops.segment_sum(weights, clusters, num_clusters)

    def mean(values: Array, weights: Array, of: Array, count: int, divisor: Array) -> Array:
        wide = lambda x: x.reshape(-1, *[1] * (values.ndim - 1))
        return jax.ops.segment_sum(wide(weights) * values, of, count) / wide(jnp.where(divisor > 0, divisor, 1.0))

    means = jax.tree.map(lambda x: mean(x, weights, clusters, num_clusters, total), tree)
    together = jnp.zeros(num_clusters, jnp.int32)
    flat = jax.tree.map(lambda x: mean(x, total, together, 1, jnp.sum(total)[None])[0], means)
    return flat, means, total


def clusters_by_memory_and_speed(
    memory: np.ndarray, speeds: np.ndarray, needed: float, most_clusters: int = 5
) -> np.ndarray:
    """int `[C]`: a cluster for each client, so that clusters hold a model of `needed` memory and are of similar speeds.

    The least of SHORTFALL * sum of the shares of `needed` that clusters lack + sum of the standard deviations of speeds
    within clusters (as shares of the mean speed), over all cuts of the clients in order of their speeds into 1 to
    `most_clusters` runs: found exactly, in O(most_clusters C^2). The authors search over all clusterings by a genetic
    algorithm; both terms in shares, and the order, are inferred. Clusters are numbered from the slowest.
    """
    memory, speeds = np.asarray(memory, np.float64), np.asarray(speeds, np.float64)
    if memory.shape != speeds.shape or memory.ndim != 1 or not len(memory):
        raise ValueError(f"give a memory and a speed for each client; got {memory.shape} and {speeds.shape}")
    if not needed > 0 or most_clusters < 1 or not (speeds > 0).all():
        raise ValueError(f"needed and speeds must be positive, most_clusters at least 1; got {needed}, {most_clusters}")
    order, count = np.argsort(speeds, kind="stable"), len(speeds)
    kept, fast = memory[order], speeds[order] / speeds.mean()

    def cost(first: int, end: int) -> float:
        lacking = max(0.0, 1 - kept[first:end].sum() / needed)
        return SHORTFALL * lacking + float(fast[first:end].std())

    costs = {(first, end): cost(first, end) for first in range(count) for end in range(first + 1, count + 1)}
    best = [{end: (costs[0, end], [0]) for end in range(1, count + 1)}]  # by clusters: end -> (cost, firsts)
    for _ in range(min(most_clusters, count) - 1):
        before = best[-1]
        best.append(
            {
                end: min((before[cut][0] + costs[cut, end], [*before[cut][1], cut]) for cut in before if cut < end)
                for end in range(min(before) + 1, count + 1)
            }
        )
    _, firsts = min(of[count] for of in best)
    found = np.zeros(count, np.int64)
    found[order] = np.searchsorted(firsts, np.arange(count), side="right") - 1
    return found
