"""The median of every coordinate (Yin et al. 2018, arXiv 1803.01498, definition 1).

    x_p = middle of the d_ip over clients i, or the mean of both middle ones where their number is even

Breakdown point 1/2 per coordinate: it stays within the honest values while fewer than half of the clients are
Byzantine. Weights are not used. Memory: twice cohort x parameters in float32 on every device.
"""

import jax.numpy as jnp

from fedjax8.algorithms.aggregators._changes import by_coordinate
from fedjax8.types import Aggregator


def median() -> Aggregator:
    """The aggregator that takes each coordinate's median."""

    def middle(values, count):
        at = lambda place: values[jnp.maximum(place, 0)]
        return jnp.where(count > 0, 0.5 * at((count - 1) // 2) + 0.5 * at(count // 2), 0.0)

    return Aggregator(combine=lambda changes, weights: (by_coordinate(middle, changes, weights), {}))


EXAMPLES = ({},)
