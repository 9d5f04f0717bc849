"""Types of topologies: who hears whom in a round, and with what weight. NumPy, or JAX where graphs change."""

from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax8.errors import UserError
from fedjax8.types import Graph

LARGEST = 1 << 24
"""Most weights of a graph, workers times neighbors: a worker's are 64 MB in all."""


def fixed(neighbors: np.ndarray, weights: np.ndarray, own: np.ndarray) -> Graph:
    """The graph of these arrays, in the dtypes of `Graph`."""
    return Graph(neighbors.astype(np.int32), weights.astype(np.float32), own.astype(np.float32))


def of_offsets(n: int, offsets: Iterable[int]) -> Graph:
    """The graph in which worker i hears i - o for each different o mod n, all with the same weight as its own."""
    steps = np.array(sorted({offset % n for offset in offsets} - {0}), np.int64)
    neighbors = (np.arange(n)[:, None] - steps) % n
    weight = 1.0 / (len(steps) + 1)
    return fixed(neighbors, np.full(neighbors.shape, weight), np.full(n, weight))


def metropolis(n: int, pairs: np.ndarray) -> Graph:
    """The graph of undirected edges `[e, 2]`, with the weights of Metropolis and Hastings: w_ij = 1 / (1 + max(d_i,
    d_j)), d the degree, so that W is symmetric and doubly stochastic (Xiao and Boyd 2004)."""
    pairs = np.unique(np.sort(pairs, axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    degree = np.bincount(pairs.reshape(-1), minlength=n)
    most = int(degree.max(initial=0))
    check_size(n, most)
    hears = np.concatenate([pairs, pairs[:, ::-1]])
    hears = hears[np.lexsort((hears[:, 1], hears[:, 0]))]
    slot = np.arange(len(hears)) - np.repeat(np.cumsum(degree) - degree, degree)
    neighbors, weights = np.repeat(np.arange(n)[:, None], most, axis=1), np.zeros((n, most))
    of_edge = 1.0 / (1 + np.maximum(degree[hears[:, 0]], degree[hears[:, 1]]))
    neighbors[hears[:, 0], slot], weights[hears[:, 0], slot] = hears[:, 1], of_edge
    return fixed(neighbors, weights, 1.0 - weights.sum(axis=1))


def check_size(n: int, degree: int) -> None:
    """Raises UserError for a graph of more than `LARGEST` weights."""
    if n * degree > LARGEST:
        raise UserError(
            f"config.algorithm.topology: {n:,} workers with up to {degree:,} neighbors each have more than {LARGEST:,} "
            "weights; use a topology with fewer neighbors, such as --config.algorithm.topology.name=exponential"
        )


def out_degrees(graph: Graph) -> Any:
    """int32 `[n]`: how many others hear each worker."""
    neighbors, weights = jnp.asarray(graph.neighbors), jnp.asarray(graph.weights)
    return jnp.zeros(len(graph.own), jnp.int32).at[neighbors].add((weights > 0).astype(jnp.int32))


def matrix(graph: Graph) -> np.ndarray:
    """float64 `[n, n]`: W, for looking at."""
    neighbors, weights, own = (np.asarray(x) for x in graph)
    whole = np.diag(own.astype(np.float64))
    rows = np.repeat(np.arange(len(own)), neighbors.shape[1])
    np.add.at(whole, (rows, neighbors.reshape(-1)), weights.reshape(-1))
    return whole


def disagreement(graph: Graph) -> float:
    """The factor by which one round shrinks the distance of workers from their mean, at least: the largest singular
    value of W - 11'/n, for symmetric W its second-largest absolute eigenvalue."""
    whole = matrix(graph)
    return float(np.linalg.svd(whole - 1.0 / len(whole), compute_uv=False)[0])
