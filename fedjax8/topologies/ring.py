"""A circle: every worker hears the `reach` next ones on both sides, all with the weight 1 / (2 reach + 1).

With reach 1 disagreement shrinks by (1 + 2 cos(2 pi / n)) / 3 a round: 1/3 for four workers, 1 - 2 pi^2 / (3 n^2) for
many.
"""

import functools
from typing import Any

from fedjax8.topologies.base import check_size, of_offsets
from fedjax8.types import Graph, Topology


def ring(reach: int = 1) -> Topology:
    """The ring.

    Args:
      reach: neighbors on each side.

    Raises:
      ValueError: a reach below 1.
    """
    if reach < 1:
        raise ValueError(f"reach must be at least 1; got {reach}")
    return Topology(functools.partial(_graph, reach))


def _graph(reach: int, round_number: Any, n: int) -> Graph:
    reach = min(reach, n // 2)
    check_size(n, 2 * reach)
    return of_offsets(n, [*range(-reach, 0), *range(1, reach + 1)])


EXAMPLES = ({}, {"reach": 2})
