"""The exponential graph: worker i hears i - 1, i - 2, i - 4, ..., all with the same weight, or one of these a round.

    static    w = 1 / (m + 1) for each of the m = ceil(log2 n) powers of two below n
    one_peer  in round t the one at distance 2^(t mod m), w = 1/2

Directed and doubly stochastic. With one peer and n a power of two, m rounds give the exact mean (Ying et al. 2021,
"Exponential graph is provably efficient for decentralized deep training", arXiv 2110.13363; recalled, not read again).
"""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax8.topologies.base import of_offsets
from fedjax8.types import Graph, Topology


def exponential(one_peer: bool = False) -> Topology:
    """The exponential graph.

    Args:
      one_peer: whether a worker hears one other a round, at distances 1, 2, 4, ... by turns.
    """
    return Topology(_one_peer if one_peer else _static, changes=one_peer)


def _distances(n: int) -> list[int]:
    return [1 << i for i in range((n - 1).bit_length())]


def _static(round_number: Any, n: int) -> Graph:
    return of_offsets(n, _distances(n))


def _one_peer(round_number: Any, n: int) -> Graph:
    distances = np.array(_distances(n) or [0], np.int32)
    step = jnp.asarray(distances)[round_number % len(distances)]
    neighbors = (jnp.arange(n, dtype=jnp.int32)[:, None] - step) % n
    weight = 0.5 if n > 1 else 0.0
    return Graph(neighbors, jnp.full((n, 1), weight, jnp.float32), jnp.full(n, 1.0 - weight, jnp.float32))


EXAMPLES = ({}, {"one_peer": True})
