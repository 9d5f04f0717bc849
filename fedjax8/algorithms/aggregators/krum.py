"""Krum and Multi-Krum: the clients with the nearest neighbors (Blanchard et al. 2017, "Machine Learning with
Adversaries: Byzantine Tolerant Gradient Descent", section 4, and its Multi-Krum).

    s_i = sum of || d_i - d_j ||^2 over the n - f - 2 clients j nearest to i
    x   = mean of the `keep` changes with the smallest s

Krum keeps one, Multi-Krum several; n - f of them is common. The guarantee needs n >= 2 f + 3, that is, a share of
Byzantine clients below 1/2; with fewer clients at least one neighbor counts. Distances are over all entries of a
message together. Weights are not used. Memory: cohort x parameters in float32 on every device, and cohort^2 distances.

Squared distances are |a|^2 + |b|^2 - 2 ab. A Byzantine client's change takes no digits from the distance of two
others; subtracting a mean first would let it.
"""

import jax
import jax.numpy as jnp

from fedjax8.algorithms.aggregators._changes import weighted_sum
from fedjax8.types import Aggregator, Array, PyTree


def squared_distances(changes: PyTree) -> Array:
    """float32 `[C, C]` of leaves `[C, ...]`; infinite where a square has no float32."""
    rows = [x.reshape(len(x), -1) for x in jax.tree.leaves(changes)]
    products = sum(jnp.matmul(x, x.T, precision="highest") for x in rows)
    squares = jnp.diagonal(products)
    distances = squares[:, None] + squares[None, :] - 2.0 * products
    return jnp.where(jnp.isfinite(distances), jnp.maximum(distances, 0.0), jnp.inf)


def scores(changes: PyTree, weights: Array, byzantine: int) -> Array:
    """float32 `[C]`: s of every client, infinite for those of weight 0."""
    counted = weights > 0
    others = counted[None, :] & ~jnp.eye(len(weights), dtype=bool)
    ascending = jnp.sort(jnp.where(others, squared_distances(changes), jnp.inf), axis=1)
    near = jnp.maximum(jnp.sum(counted) - byzantine - 2, 1)
    total = jnp.sum(jnp.where(jnp.arange(len(weights)) < near, ascending, 0.0), axis=1)
    return jnp.where(counted, total, jnp.inf)


def krum(byzantine: int = 1, keep: int | None = 1) -> Aggregator:
    """The aggregator that keeps the clients with the nearest neighbors.

    Args:
      byzantine: f, the number of Byzantine clients in a round that it withstands.
      keep: number of clients that are averaged; None for all but f.

    Reports `aggregate_score`, the best s.
    """
    if byzantine < 0 or (keep is not None and keep < 1):
        raise ValueError(f"need byzantine >= 0 and keep >= 1; got {byzantine} and {keep}")

    def combine(changes: PyTree, weights: Array) -> tuple[PyTree, dict[str, Array]]:
        of_client = scores(changes, weights, byzantine)
        count = jnp.sum(weights > 0)
        wanted = jnp.clip(count - byzantine if keep is None else keep, 1, jnp.maximum(count, 1))
        rank = jnp.argsort(jnp.argsort(of_client))
        kept = (rank < wanted) & (weights > 0)
        mean = weighted_sum(kept / jnp.maximum(jnp.sum(kept), 1), changes)
        return mean, {"aggregate_score": jnp.min(of_client)}

    return Aggregator(combine)


EXAMPLES = ({}, {"byzantine": 2, "keep": 3}, {"keep": None})
