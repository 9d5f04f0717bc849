"""The natural split: every training row goes to the writer, speaker or user that made it.

With fewer clients than natural ones, a random subset of them takes part and the rows of the others stay
unused (-1).
"""

import numpy as np

from fedjax8.data.federated import Dataset, Windows
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows
from fedjax8.errors import UserError


def by_key() -> Split:
    """Natural clients, or a uniform subset of them, numbered from 0 in ascending order of their owner id.

    Owners come out as owners, and windows (`Dataset.clients`) as windows; a natural client of the latter kind may be
    without rows. `fedjax8.data.match_test_owners` gives the matching split of the test rows.
    """

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray | Windows:
        if dataset.clients is not None:
            order, starts, sizes, names = dataset.clients
            if num_clients == len(starts):  # taken as they are, unread: there may be millions, in a file
                return dataset.clients
            chosen = _chosen(rng, dataset.name, len(starts), num_clients)
            return Windows(order, starts[chosen], sizes[chosen], None if names is None else names[chosen])
        if dataset.owners is None:
            raise UserError(
                f"{dataset.name} has no natural clients to split by; use iid, dirichlet, shards or quantity_skew"
            )
        checked_rows(dataset, num_clients)
        keys, natural = np.unique(dataset.owners, return_inverse=True)
        chosen = _chosen(rng, dataset.name, len(keys), num_clients)
        client_of = np.full(len(keys), -1, np.int32)
        client_of[chosen] = np.arange(num_clients, dtype=np.int32)
        return client_of[natural]

    return split


def _chosen(rng: np.random.Generator, name: str, natural: int, num_clients: int) -> np.ndarray:
    """[num_clients] different ones of the natural clients, in ascending order."""
    if not 1 <= num_clients <= natural:
        raise UserError(
            f"num_clients is {num_clients} but {name} has {natural} natural clients; use at least 1 and at most "
            f"{natural}"
        )
    return np.sort(rng.choice(natural, num_clients, replace=False))


EXAMPLES = ({},)
