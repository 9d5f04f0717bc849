"""Everyone with everyone: W = 11'/n, which makes all workers the mean in one round.

n (n - 1) messages a round.
"""

from typing import Any

from fedjax8.topologies.base import check_size, of_offsets
from fedjax8.types import Graph, Topology


def complete() -> Topology:
    """The complete graph with equal weights."""
    return Topology(_graph)


def _graph(round_number: Any, n: int) -> Graph:
    check_size(n, n - 1)
    return of_offsets(n, range(n))


EXAMPLES = ({},)
