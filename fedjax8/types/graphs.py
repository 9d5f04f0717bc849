"""Graphs of workers, and what a worker gets by mixing."""

from collections.abc import Callable
from typing import Any, NamedTuple

from fedjax8.types.models import Array, PyTree


class Graph(NamedTuple):
    """The graph of one round of `n` workers, each of whom hears at most `k` others.

    Row i of the mixing matrix W has `own[i]` at i and `weights[i]` at `neighbors[i]`, and sums to 1.
    """

    neighbors: Any
    """int32 `[n, k]`: the workers that worker i hears; itself, with weight 0, for padding."""
    weights: Any
    """float32 `[n, k]`, from 0 up; a worker is heard where the weight is above 0."""
    own: Any
    """float32 `[n]`: the weight of a worker's own tree."""


class Topology(NamedTuple):
    """A family of graphs; see `topologies`."""

    graph: Callable[[Any, int], Graph]
    """`(rounds done before, workers) -> Graph`, traceable in the first: a function of these alone. Raises UserError for
    a number of workers that it cannot connect."""
    doubly_stochastic: bool = True
    """Whether columns of W sum to 1 too, so that mixing keeps the mean of all workers."""
    changes: bool = False
    """Whether rounds differ."""


Receive = Callable[[PyTree, PyTree, PyTree], PyTree]
"""`(memory, own tree as the others decode it, weighted mean) -> memory`: a worker's work after an exchange."""


class Mixed(NamedTuple):
    """Totals of an exchange between workers."""

    clients: Array
    """int32: workers whose tree was used."""
    report: dict[str, Array]
    """Sums over them, and `excluded`: int32 number of workers left out because their tree or their new memory cannot be
    used."""
