"""A grid whose opposite edges are glued together: every worker hears those above, below, left and right of it.

Weights are those of Metropolis and Hastings, 1/5 where both sides are at least 3.
"""

import functools
import math
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.topologies.base import metropolis
from fedjax8.types import Graph, Topology


def torus(rows: int = 0) -> Topology:
    """The torus.

    Args:
      rows: of the grid, a divisor of the number of workers; 0 for the one that makes it most like a square.

    Raises:
      ValueError: a negative number.
      UserError: when a run is set up, if the workers fill no grid of at least two rows and columns.
    """
    if rows < 0:
        raise ValueError(f"rows must be at least 0; got {rows}")
    return Topology(functools.partial(_graph, rows))


def _graph(rows: int, round_number: Any, n: int) -> Graph:
    rows = rows or next(r for r in range(math.isqrt(n), 0, -1) if n % r == 0)
    if n % rows or min(rows, n // rows) < 2:
        raise UserError(
            f"config.algorithm.topology: {n} workers fill no grid of {rows} rows with at least two rows and columns; "
            "change num_clients or rows, or use --config.algorithm.topology.name=ring"
        )
    at = np.arange(n).reshape(rows, -1)
    pairs = [np.stack([at, np.roll(at, 1, axis)], axis=-1).reshape(-1, 2) for axis in (0, 1)]
    return metropolis(n, np.concatenate(pairs))


EXAMPLES = ({}, {"rows": 2})
