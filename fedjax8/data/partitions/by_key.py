"""The natural split: every training row goes to the writer, speaker or user that made it.

With fewer clients than natural ones, a random subset of them takes part and the rows of the others stay
unused (-1).
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows
from fedjax8.errors import UserError


def by_key() -> Split:
    """Natural clients, or a uniform subset of them, numbered from 0 in ascending order of their owner id.

    `fedjax8.data.match_test_owners` gives the matching split of the test rows.
    """

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        if dataset.owners is None:
            raise UserError(
                f"{dataset.name} has no natural clients to split by; use iid, dirichlet, shards or quantity_skew"
            )
        checked_rows(dataset, num_clients)
        keys, natural = np.unique(dataset.owners, return_inverse=True)
        if num_clients > len(keys):
            raise UserError(
                f"num_clients is {num_clients} but {dataset.name} has {len(keys)} natural clients; "
                f"use at most {len(keys)}"
            )
        chosen = np.sort(rng.choice(len(keys), num_clients, replace=False))
        client_of = np.full(len(keys), -1, np.int32)
        client_of[chosen] = np.arange(num_clients, dtype=np.int32)
        return client_of[natural]

    return split


EXAMPLES = ({},)
