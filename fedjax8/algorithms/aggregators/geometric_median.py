"""The geometric median by the smoothed Weiszfeld algorithm (Pillutla et al. 2022, "Robust Aggregation for Federated
Learning", arXiv 1912.13445, algorithm 2).

    z = argmin sum_i p_i || z - d_i ||,   by   b_i = p_i / max(eps, || z - d_i ||);   z <- sum_i b_i d_i / sum_i b_i

The authors' code starts from the mean and ends where the objective stands still. A Byzantine client that sends 1e6
spoils both: it drags the mean off, of which a step forgets a factor of about n, and its distance makes all other
changes of the objective look small. Here z starts from the mean of changes shortened to their median length, and the
number of steps is fixed.

Breakdown point 1/2 by weight: z stays bounded while Byzantine clients have less than half of all weight. Norms are
over all entries of a message together. The only one of this family that uses weights, and that secure aggregation
could compute, as sums. Memory: cohort x parameters in float32 on every device.
"""

import jax
import jax.numpy as jnp

from fedjax8.algorithms.aggregators._changes import weighted_sum
from fedjax8.types import Aggregator, Array, PyTree


def distances(changes: PyTree, point: PyTree) -> Array:
    """float32 `[C]`: distance of each client's change from the point; infinite where that has no float32."""
    squares = [
        jnp.sum(jnp.square(x - z).reshape(len(x), -1), axis=1)
        for x, z in zip(jax.tree.leaves(changes), jax.tree.leaves(point), strict=True)
    ]
    found = jnp.sqrt(sum(squares))
    return jnp.where(jnp.isfinite(found), found, jnp.inf)


def geometric_median(iterations: int = 8, *, eps: float = 1e-5) -> Aggregator:
    """The aggregator that takes the geometric median.

    Args:
      iterations: steps; the authors' code has 4 at most.
      eps: floor of the distances.

    Reports `aggregate_distance`, the objective.
    """
    if iterations < 1 or not eps > 0:
        raise ValueError(f"need iterations >= 1 and eps > 0; got {iterations} and {eps}")
    tiny = jnp.finfo(jnp.float32).tiny

    def combine(changes: PyTree, weights: Array) -> tuple[PyTree, dict[str, Array]]:
        # A client whose norm has no float32 is infinitely far away and pulls at nothing.
        lengths = distances(changes, jax.tree.map(lambda x: jnp.zeros(x.shape[1:]), changes))
        near = (weights > 0) & jnp.isfinite(lengths)
        changes = jax.tree.map(lambda x: jnp.where(near.reshape(-1, *(1,) * (x.ndim - 1)), x, 0.0), changes)
        p = jnp.where(near, weights, 0.0)
        p /= jnp.maximum(jnp.sum(p), tiny)
        usual = jnp.nanmedian(jnp.where(near, lengths, jnp.nan))
        shortened = jnp.where(near, jnp.minimum(1.0, usual / jnp.maximum(lengths, tiny)), 0.0)

        def step(_, point: PyTree) -> PyTree:
            pull = p / jnp.maximum(distances(changes, point), eps)
            return weighted_sum(pull / jnp.maximum(jnp.sum(pull), tiny), changes)

        point = jax.lax.fori_loop(0, iterations, step, weighted_sum(p * shortened, changes))
        return point, {"aggregate_distance": jnp.sum(p * distances(changes, point))}

    return Aggregator(combine)


EXAMPLES = ({}, {"iterations": 60})
