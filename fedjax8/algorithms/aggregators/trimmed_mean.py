"""The trimmed mean of every coordinate (Yin et al. 2018, arXiv 1803.01498, definition 2).

    x_p = mean of the d_ip that are left after the k smallest and the k largest are cut,   k = floor(trim n)

Breakdown point `trim` per coordinate, below 1/2. Weights are not used; trim = 0 is the unweighted mean. Memory: twice
cohort x parameters in float32 on every device.
"""

import jax.numpy as jnp
import numpy as np

from fedjax8.algorithms.aggregators._changes import by_coordinate
from fedjax8.types import Aggregator


def cuts(trim: float, most: int) -> np.ndarray:
    """int32 `[most + 1]`: k for every number of clients up to `most`. 0.29 of 100 is 29, though not in floats."""
    return np.floor(trim * np.arange(most + 1) + 1e-9).astype(np.int32)


def trimmed_mean(trim: float = 0.2) -> Aggregator:
    """The aggregator that cuts the share `trim`, from 0 to below 1/2, of the n clients at each end."""
    if not 0 <= trim < 0.5:
        raise ValueError(f"trim must be from 0 to below 0.5; got {trim}")

    def middle(values, count):
        cut = jnp.asarray(cuts(trim, len(values)))[count]
        rank = jnp.arange(len(values))[:, None]
        kept = (rank >= cut) & (rank < count - cut)
        return jnp.sum(jnp.where(kept, values, 0.0), axis=0) / jnp.maximum(count - 2 * cut, 1)

    return Aggregator(combine=lambda changes, weights: (by_coordinate(middle, changes, weights), {}))


EXAMPLES = ({}, {"trim": 0.0}, {"trim": 0.4})
