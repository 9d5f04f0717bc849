"""One worker in the middle, number `center`, whom all others hear and who hears all of them: a server with rows of its
own. Weights are those of Metropolis and Hastings: 1 / n on every edge.
"""

import functools
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.topologies.base import metropolis
from fedjax8.types import Graph, Topology


def star(center: int = 0) -> Topology:
    """The star.

    Args:
      center: the worker in the middle.

    Raises:
      ValueError: a negative number.
      UserError: when a run is set up, if there is no such worker.
    """
    if center < 0:
        raise ValueError(f"center must be at least 0; got {center}")
    return Topology(functools.partial(_graph, center))


def _graph(center: int, round_number: Any, n: int) -> Graph:
    if center >= n:
        raise UserError(
            f"config.algorithm.topology: there are {n} workers, from 0 to {n - 1}, and center is {center}; lower it"
        )
    others = np.setdiff1d(np.arange(n), [center])
    return metropolis(n, np.stack([np.full(n - 1, center), others], axis=1))


EXAMPLES = ({}, {"center": 2})
