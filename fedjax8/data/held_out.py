"""Held-out rows by client: test rows for the evaluation of a client's own model.

Where the data set names the natural client of each test row, and the split keeps natural clients together, they are the
client's own (`natural`); in a folder on disk those of the client with the same name. Else test rows are
dealt by the labels that clients train on (`dealt`):

    client k gets of the test rows of label c a share n_kc / sum_j n_jc,      n_kc its training rows of that label

so that label and size skew of a client are those of its training rows, by whichever partition. Shares are rounded down
or up to whole rows, at random so that they are met in expectation; no test row goes to two clients. Rows of a label
that nobody trains on go to nobody, and a client whose shares come to nothing has no held-out rows. Rows with a label at
every position, and those whose targets are no class numbers, are dealt by sizes alone. Other differences between
clients, such as the inputs of windows of a file, are not followed. The rule is this project's; where a partition cuts
shards, dealing test rows by the same shards, as is usual, gives the same labels in the same shares.
"""

from typing import NamedTuple

import numpy as np

from fedjax8.data.federated import Dataset, FederatedData, match_test_owners
from fedjax8.errors import UserError

NATURAL, DEALT = "natural", "dealt"

_HELD_OUT_STREAM = 0x4E1D
"""Keeps the draws of dealing apart from those of the split of training rows."""


class HeldOut(NamedTuple):
    """Test rows by client."""

    kind: str
    """`natural`, or `dealt` by the clients' labels."""
    clients: FederatedData
    """Clients as in training, over the test columns."""


def held_out(dataset: Dataset, clients: FederatedData, seed: int = 0) -> HeldOut:
    """The held-out rows of each client.

    Args:
      dataset: has the test rows.
      clients: the training rows by client.
      seed: of dealing; same seed, same rows.
    """
    named = _by_name(dataset, clients)
    if named is not None:
        return HeldOut(NATURAL, named)
    owners = _natural(dataset, clients)
    if owners is not None:
        return HeldOut(NATURAL, FederatedData.from_owners(dataset.test, owners, clients.num_clients, clients.names))
    labels = np.asarray(dataset.test["y"])
    if labels.ndim == 1 and dataset.num_classes is not None:
        shares = clients.label_counts(dataset.num_classes)
    else:
        labels, shares = np.zeros(len(labels), np.int32), clients.sizes[:, None]
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_HELD_OUT_STREAM,)))
    owners = deal(rng, labels, shares)
    return HeldOut(DEALT, FederatedData.from_owners(dataset.test, owners, clients.num_clients, clients.names))


def deal(rng: np.random.Generator, labels: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """int32 `[N]`: the client of each row, -1 for none.

    Args:
      rng: draws.
      labels: `[N]` from 0.
      shares: `[K, classes]`, not negative: of the rows of a class client k gets `shares[k] / sum(shares)`, rounded down
        or up.
    """
    owners = np.full(len(labels), -1, np.int32)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        order = rng.permutation(len(shares))
        edges = np.cumsum(shares[order, label], dtype=np.float64)
        if edges[-1] == 0:
            continue
        # One offset for all: the cut points of systematic sampling.
        cuts = np.floor(edges / edges[-1] * len(rows) + rng.random()).astype(np.int64)
        cuts[-1] = len(rows)
        owners[rows] = np.repeat(order, np.diff(np.minimum(cuts, len(rows)), prepend=0))
    return owners


def owned_once(clients: FederatedData) -> bool:
    """Whether clients lie one after another, and every position is one client's."""
    ends = np.cumsum(clients.sizes, dtype=np.int64)
    return bool(np.array_equal(clients.starts, ends - clients.sizes) and clients.num_positions == ends[-1])


def _by_name(dataset: Dataset, clients: FederatedData) -> FederatedData | None:
    """The test rows of clients that lie as windows in a folder, by the names of clients; None without one in both."""
    windows = dataset.test_clients
    if windows is None or windows.names is None or clients.names is None:
        return None
    order = np.argsort(windows.names)
    places = np.minimum(np.searchsorted(windows.names, clients.names, sorter=order), len(order) - 1)
    found = order[places]
    there = windows.names[found] == clients.names
    if not there.any():
        return None
    starts, sizes = np.where(there, windows.starts[found], 0), np.where(there, windows.sizes[found], np.int32(0))
    return FederatedData(dataset.test, windows.order, starts, sizes.astype(np.int32), names=clients.names)


def _natural(dataset: Dataset, clients: FederatedData) -> np.ndarray | None:
    """[N_test] the client of each test row where these are known; None where not, or where the split does not follow
    natural clients."""
    if dataset.test_owners is None or dataset.owners is None or clients.order is None or not owned_once(clients):
        return None
    if len(np.unique(clients.order)) != len(clients.order):
        return None
    owners = np.full(len(dataset.train["y"]), -1, np.int32)
    owners[clients.order] = np.repeat(np.arange(clients.num_clients, dtype=np.int32), clients.sizes)
    try:
        return match_test_owners(dataset, owners)
    except UserError:
        return None
