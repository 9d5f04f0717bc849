"""Random pairs, new in every round: both of a pair take the mean, w = 1/2. One of an odd number stays alone."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from fedjax8.keys import random_key
from fedjax8.types import Graph, Topology


def matching(seed: int = 0) -> Topology:
    """The random matching.

    Args:
      seed: of the pairs, apart from the run's.

    Raises:
      ValueError: a seed out of range.
    """
    if not 0 <= seed < 1 << 31:
        raise ValueError(f"seed must be from 0 to 2**31 - 1; got {seed}")
    return Topology(functools.partial(_graph, seed), changes=True)


def _graph(seed: int, round_number: Any, n: int) -> Graph:
    order = jax.random.permutation(jax.random.fold_in(random_key(seed), round_number), n)
    place = jnp.zeros(n, jnp.int32).at[order].set(jnp.arange(n, dtype=jnp.int32))
    other = place ^ 1
    alone = other >= n
    neighbors = jnp.where(alone, jnp.arange(n), order[jnp.minimum(other, n - 1)]).astype(jnp.int32)
    weight = jnp.where(alone, 0.0, 0.5).astype(jnp.float32)
    return Graph(neighbors[:, None], weight[:, None], 1.0 - weight)


EXAMPLES = ({}, {"seed": 3})
