"""A validation part: held-out training rows, for the choice of settings and for early stopping.

    of rows      of client k floor(f n_k + u_k) rows are held out, u_k uniform in [0, 1), but one stays: f in the mean
    of clients   round(f K) clients, at least one, take no part with all their rows

Which rows or clients these are comes from a random stream of its own, so that the split over clients is the same as
without a validation part. Test rows are then for reporting alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fedjax8.data.federated import FederatedData
from fedjax8.errors import UserError

PARTS = ("rows", "clients")
_STREAM = 0xA11DA7E
"""Keeps this random stream apart from those of the split and of cohorts."""
MOST_ROWS = 1 << 28
"""Of clients whose rows lie side by side: they then need an order, of 4 bytes a row, so at most a gibibyte."""


class ValidationPart(NamedTuple):
    """Clients without the validation part, and that part."""

    clients: FederatedData
    rows: Mapping[str, np.ndarray] | None
    """Columns `[V, ...]`, V at least 1, in the order in which they lie; None where nothing is held out."""


def validation_part(clients: FederatedData, share: float, of: str = "rows", seed: int = 0) -> ValidationPart:
    """A share of the rows of each client, or of the clients, taken out of training; same seed, same part.

    Args:
      clients: rows by client; their columns are shared, not copied.
      share: above 0 and below 1.
      of: `rows` or `clients`.
      seed: of the choice.

    Raises:
      UserError: for a share out of range, or so small that nothing is held out; where clients share rows, one of which
        could be trained on by one client and held out for another.
    """
    if not 0 < share < 1:
        raise UserError(f"validation is {share}; give a share above 0 and below 1, such as 0.1")
    if of not in PARTS:
        raise UserError(f"validation_of is {of!r}, but must be one of {', '.join(PARTS)}")
    if clients.order is None and clients.num_positions > MOST_ROWS:
        raise UserError(
            f"validation needs an order of the rows, 4 bytes each, and there are {clients.num_positions}; at most "
            f"{MOST_ROWS} can be had: write a validation part into the folder's test rows instead"
        )
    sizes = clients.sizes.astype(np.int64)
    owners = np.repeat(np.arange(clients.num_clients), sizes)
    firsts = np.cumsum(sizes) - sizes
    places = np.arange(len(owners)) - firsts[owners]  # within the client
    rows = np.asarray(clients.rows_at(clients.starts[owners] + places))
    seen = np.zeros(len(next(iter(clients.columns.values()))), bool)
    seen[rows] = True
    if np.count_nonzero(seen) < len(rows):
        raise UserError(
            "validation needs rows that belong to one client each, and here clients share rows: rows held out for "
            "one would be trained on by another; choose another partition, such as dirichlet"
        )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM,)))
    held = (_some_rows if of == "rows" else _some_clients)(rng, share, sizes, owners)
    if not held.any():
        raise UserError(
            f"validation: {share} of the {of} holds out no row of {len(rows)}; give a larger share, or validation_of="
            f"{'clients' if of == 'rows' else 'rows'}"
        )
    kept = np.ones(clients.num_clients, bool)
    if of == "clients":
        kept[np.unique(owners[held])] = False
        kept[sizes == 0] = True
    left = np.bincount(owners[~held], minlength=clients.num_clients)[kept]
    order = rows[~held].astype(np.int32)
    remaining = dataclasses.replace(
        clients,
        order=order,
        starts=np.cumsum(left) - left,
        sizes=left.astype(np.int32),
        names=None if clients.names is None else clients.names[kept],
        checked=True,
    )
    chosen = np.sort(rows[held])
    return ValidationPart(remaining, {name: np.asarray(column[chosen]) for name, column in clients.columns.items()})


def _some_rows(rng: np.random.Generator, share: float, sizes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """bool `[N]`: the rows held out of each client."""
    counts = np.minimum(np.floor(share * sizes + rng.random(len(sizes))).astype(np.int64), np.maximum(sizes - 1, 0))
    by_chance = np.lexsort((rng.random(len(owners)), owners))  # the rows of each client in random order
    ranks = np.empty(len(owners), np.int64)
    ranks[by_chance] = np.arange(len(owners)) - (np.cumsum(sizes) - sizes)[owners]
    return ranks < counts[owners]


def _some_clients(rng: np.random.Generator, share: float, sizes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """bool `[N]`: all rows of the clients held out, which are some of those that have rows."""
    (full,) = np.nonzero(sizes)
    if len(full) < 2:
        raise UserError(f"validation_of=clients needs two clients with rows; here are {len(full)}")
    count = min(max(round(share * len(full)), 1), len(full) - 1)
    chosen = np.zeros(len(sizes), bool)
    chosen[rng.choice(full, count, replace=False)] = True
    return chosen[owners]
