"""Any number of clients as random windows into one order of the rows: for tests of scale.

    size_k ~ uniform{smallest .. largest},   start_k ~ uniform{0 .. N - size_k}

over rows in random order. Unlike in the other partitions clients share rows, so there may be far more of them than
rows; a client costs twelve bytes.
"""

import numpy as np

from fedjax8.data.federated import Dataset, Windows
from fedjax8.data.partitions import Split
from fedjax8.errors import UserError


def windows(smallest: int = 1, largest: int = 200, *, by_label: bool = False) -> Split:
    """A split into overlapping clients of uniformly distributed size.

    Args:
        smallest: rows that a client has at least.
        largest: rows that a client has at most.
        by_label: over rows sorted by label, so that a client sees few classes; else over rows in random order.
    """
    if not 1 <= smallest <= largest:
        raise ValueError(f"sizes are {smallest} to {largest}; they must run from at least 1 upwards")

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> Windows:
        labels = dataset.train["y"]
        return random_windows(rng, len(labels), num_clients, (smallest, largest), labels if by_label else None)

    return split


def random_windows(
    rng: np.random.Generator, rows: int, num_clients: int, sizes: tuple[int, int], labels: np.ndarray | None = None
) -> Windows:
    """The windows of `windows(*sizes)` over this many rows, sorted by `labels` [rows] where these are given.

    UserError if there are no clients, or a client could have no row or more than there are.
    """
    low, high = sizes
    if num_clients < 1:
        raise UserError(f"num_clients is {num_clients}; it must be at least 1")
    if not 1 <= low <= high <= rows:
        raise UserError(f"sizes are {low} to {high}; they must run from at least 1 to at most {rows} rows")
    if labels is not None and labels.ndim > 1:
        raise UserError("by_label needs one label a row; leave it out for label sequences")
    order = rng.permutation(rows).astype(np.int32)
    if labels is not None:
        order = order[np.argsort(labels[order], kind="stable")]
    client_sizes = rng.integers(low, high, size=num_clients, dtype=np.int32, endpoint=True)
    starts = rng.integers(0, rows - client_sizes, dtype=np.int64, endpoint=True)
    return Windows(order, starts, client_sizes)


EXAMPLES = ({}, {"smallest": 5, "largest": 5}, {"smallest": 10, "largest": 50, "by_label": True})
