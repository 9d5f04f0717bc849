"""A random regular graph: all workers have `degree` neighbors, drawn once, the same in all rounds.

Stubs of edges are paired at random, and pairs that would be loops or double edges are paired anew (Steger and Wormald
1999, whose law is nearly uniform); a graph that is not connected is drawn again. All weights are 1 / (degree + 1).
"""

import functools
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.topologies.base import check_size, metropolis
from fedjax8.types import Graph, Topology

TRIES = 1000
"""Graphs that are drawn before it is given up."""


def regular(degree: int = 4, *, seed: int = 0) -> Topology:
    """The random regular graph.

    Args:
      degree: neighbors of each worker, from 2 up.
      seed: of the graph, apart from the run's.

    Raises:
      ValueError: a setting out of range.
      UserError: when a run is set up, if no such graph has that number of workers.
    """
    if degree < 2 or not 0 <= seed < 1 << 64:
        raise ValueError(f"degree must be at least 2, and seed from 0 to 2**64 - 1; got {degree} and {seed}")
    return Topology(functools.partial(_graph, degree, seed))


@functools.lru_cache(maxsize=8)
def _drawn(degree: int, seed: int, n: int) -> np.ndarray:
    """int `[e, 2]`: the edges."""
    random = np.random.default_rng([seed, degree, n])
    for _ in range(TRIES):
        pairs = _paired(random, degree, n)
        if pairs is not None and _connected(pairs, n):
            return pairs
    raise UserError(
        f"config.algorithm.topology: no connected graph of {n} workers with {degree} neighbors each was found in "
        f"{TRIES} draws; change degree or seed"
    )


def _graph(degree: int, seed: int, round_number: Any, n: int) -> Graph:
    if degree >= n or degree * n % 2:
        raise UserError(
            f"config.algorithm.topology: {n} workers cannot have {degree} neighbors each: degree must be below "
            "the number of workers, and one of the two even; change degree or num_clients"
        )
    check_size(n, degree)
    return metropolis(n, _drawn(degree, seed, n))


def _paired(random: np.random.Generator, degree: int, n: int) -> np.ndarray | None:
    """Edges of a random graph; None where the stubs that are left cannot be paired."""
    stubs = np.repeat(np.arange(n), degree)
    found = np.zeros((0, 2), np.int64)
    while len(stubs):
        pairs = np.sort(random.permutation(stubs).reshape(-1, 2), axis=1)
        code = pairs[:, 0] * n + pairs[:, 1]
        _, first = np.unique(code, return_index=True)
        good = np.zeros(len(pairs), bool)
        good[first] = True
        good &= (pairs[:, 0] != pairs[:, 1]) & ~np.isin(code, found[:, 0] * n + found[:, 1])
        if not good.any() and not _possible(stubs, found, n):
            return None
        found, stubs = np.concatenate([found, pairs[good]]), pairs[~good].reshape(-1)
    return found


def _possible(stubs: np.ndarray, found: np.ndarray, n: int) -> bool:
    """Whether any two of the stubs may still be joined."""
    left = np.unique(stubs)
    a, b = np.triu_indices(len(left), 1)
    return bool(np.any(~np.isin(left[a] * n + left[b], found[:, 0] * n + found[:, 1])))


def _connected(pairs: np.ndarray, n: int) -> bool:
    """Whether every worker is reached from the first: everyone takes the smallest number around it until none falls."""
    smallest = np.arange(n)
    while True:
        lower = smallest.copy()
        np.minimum.at(lower, pairs[:, 0], smallest[pairs[:, 1]])
        np.minimum.at(lower, pairs[:, 1], smallest[pairs[:, 0]])
        lower = lower[lower]
        if np.array_equal(lower, smallest):
            return not smallest.any()
        smallest = lower


EXAMPLES = ({"degree": 2}, {"degree": 4, "seed": 1})
