"""The geometric median by the smoothed Weiszfeld algorithm (Pillutla et al. 2022, "Robust Aggregation for Federated
Learning", arXiv 1912.13445, algorithm 2).

    z = argmin sum_i p_i || z - d_i ||,      from z = sum_i p_i d_i by
    b_i = p_i / max(eps, || z - d_i ||);      z <- sum_i b_i d_i / sum_i b_i

Breakdown point 1/2 by weight: z stays bounded while clients of less than half of all weight lie. Norms are over all
that is sent together. The only one of this family that uses weights, and that secure aggregation could compute, as
sums. Memory: cohort x parameters in float32 on every device.
"""

import jax
import jax.numpy as jnp

from fedjax8.algorithms.aggregators._changes import weighted_sum
from fedjax8.types import Aggregator, Array, PyTree


def distances(changes: PyTree, point: PyTree) -> Array:
    """float32 `[C]`: how far each client's change is from the point; infinite where that has no float32."""
    squares = [
        jnp.sum(jnp.square(x - z).reshape(len(x), -1), axis=1)
        for x, z in zip(jax.tree.leaves(changes), jax.tree.leaves(point), strict=True)
    ]
    found = jnp.sqrt(sum(squares))
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def geometric_median(iterations: int = 4, *, eps: float = 1e-5, tolerance: float = 1e-6) -> Aggregator:
    """The aggregator that takes the geometric median.

    Args:
      iterations: at most; the authors' code has 4. A liar that sends 1e6 needs more to be forgotten: each divides its
        pull by about the number of clients.
      eps: what distances count as at least.
      tolerance: it ends earlier once the objective changes by less than this share.
    """
    if iterations < 1 or not eps > 0 or tolerance < 0:
        raise ValueError(f"need iterations >= 1, eps > 0, tolerance >= 0; got {iterations}, {eps}, {tolerance}")

    def combine(changes: PyTree, weights: Array) -> tuple[PyTree, dict[str, Array]]:
        # A client whose norm has no float32 is infinitely far away and pulls at nothing.
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), changes)
        near = jnp.isfinite(distances(changes, zero))
        changes = jax.tree.map(lambda x: jnp.where(near.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0), changes)
        weights = jnp.where(near, weights, 0.0)
        p = weights / jnp.maximum(jnp.sum(weights), jnp.finfo(jnp.float32).tiny)

        def look(point):
            away = distances(changes, point)
            return away, jnp.sum(p * away)

        def step(carried):
            point, away, objective, _, count = carried
            pull = p / jnp.maximum(away, eps)
            pull /= jnp.maximum(jnp.sum(pull), jnp.finfo(jnp.float32).tiny)
            point = weighted_sum(pull, changes)
            away, new = look(point)
            return point, away, new, jnp.abs(objective - new) > tolerance * objective, count + 1

        start = weighted_sum(p, changes)
        more = lambda carried: carried[3] & (carried[4] < iterations)
        point, _, objective, _, _ = jax.lax.while_loop(more, step, (start, *look(start), jnp.array(True), 0))
        return point, {"aggregate_distance": objective}

    return Aggregator(combine)


EXAMPLES = ({}, {"iterations": 30})
