"""Edges from a table: CSV, TSV or Parquet, a row for each.

    from,to            undirected edges, with the weights of Metropolis and Hastings
    from,to,weight     directed: worker `to` hears worker `from` with that weight; the rest of its 1 is its own

Workers have numbers from 0 up. A matrix of given weights need not be doubly stochastic; where its columns do not sum to
1, the mean of all workers moves as they mix. Read by pyarrow (`pip install 'fedjax8[csv]'`).
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.readers.tables import Table, read_table
from fedjax8.topologies.base import check_size, fixed, metropolis
from fedjax8.types import Graph, Topology

COLUMNS = (["from", "to"], ["from", "to", "weight"])
EXACT = 1e-5
"""Error of a sum of float32 weights that is still taken for 1."""


def file(path: str = "") -> Topology:
    """The graph of a table.

    Args:
      path: of the table.

    Raises:
      UserError: pyarrow is not installed, the table cannot be read, or a number in it is not as said above; when a run
        is set up, if it names workers that there are not.
    """
    if not path:
        raise ValueError("path is needed: that of a table with the columns from, to and perhaps weight")
    table = read_table(Path(path).expanduser(), "")
    where = table.files[0][0]
    if sorted(table.columns) not in [sorted(names) for names in COLUMNS]:
        raise UserError(
            f"{where}: row 1 must name the columns from, to, or from, to, weight; it has {', '.join(table.columns)}"
        )
    edges = np.stack([_workers(table, name) for name in ("from", "to")], axis=1)
    if "weight" not in table.columns:
        return Topology(functools.partial(_undirected, str(where), edges))
    weights = table.numbers("weight")
    bad = ~((weights > 0) & (weights <= 1))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{table.at('weight', row)} is {weights[row]:g}; it must be a number above 0, at most 1")
    _, first = np.unique(edges, axis=0, return_index=True)
    if len(first) < len(edges):
        row = int(np.setdiff1d(np.arange(len(edges)), first)[0])
        raise UserError(f"{table.at('to', row)}: the edge {edges[row, 0]} to {edges[row, 1]} is there a second time")
    incoming = np.bincount(edges[:, 1], weights)
    if np.any(incoming > 1 + EXACT):
        worker = int(incoming.argmax())
        raise UserError(f"{where}: the weights of worker {worker} sum to {incoming[worker]:g}, and must to at most 1")
    outgoing = np.bincount(edges[:, 0], weights, minlength=len(incoming))
    balanced = len(outgoing) == len(incoming) and bool(np.all(np.abs(outgoing - incoming) <= EXACT))
    return Topology(functools.partial(_directed, str(where), edges, weights), doubly_stochastic=balanced)


def _workers(table: Table, name: str) -> np.ndarray:
    values = table.numbers(name)
    bad = (values < 0) | (values != np.rint(values)) | (values >= 2**31)
    if bad.any():
        row = int(bad.argmax())
        raise UserError(f"{table.at(name, row)} is {values[row]:g}; it must be a worker's number, from 0 up")
    return values.astype(np.int64)


def _check_workers(where: str, edges: np.ndarray, n: int) -> None:
    if edges.size and edges.max() >= n:
        raise UserError(f"{where} names worker {edges.max()}, and there are {n}, from 0 to {n - 1}; change num_clients")


def _undirected(where: str, edges: np.ndarray, round_number: Any, n: int) -> Graph:
    _check_workers(where, edges, n)
    return metropolis(n, edges)


def _directed(where: str, edges: np.ndarray, weights: np.ndarray, round_number: Any, n: int) -> Graph:
    _check_workers(where, edges, n)
    loops = edges[:, 0] == edges[:, 1]
    (sender, receiver), weights = edges[~loops].T, weights[~loops]
    degree = np.bincount(receiver, minlength=n)
    most = int(degree.max(initial=0))
    check_size(n, most)
    order = np.argsort(receiver, kind="stable")
    slot = np.arange(len(order)) - np.repeat(np.cumsum(degree) - degree, degree)
    neighbors, of = np.repeat(np.arange(n)[:, None], most, axis=1), np.zeros((n, most))
    neighbors[receiver[order], slot], of[receiver[order], slot] = sender[order], weights[order]
    return fixed(neighbors, of, np.maximum(1.0 - of.sum(axis=1), 0.0))


EXAMPLES = ()
