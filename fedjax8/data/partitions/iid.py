"""Rows dealt at random, sizes equal to within one row: every client sees the same distribution.

The IID split of McMahan et al., Communication-efficient learning of deep networks from decentralized data,
section 3.
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows, client_ids, even_sizes


def iid() -> Split:
    """A uniformly random split into clients of equal size (to within one row) that uses every row."""

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        rows = checked_rows(dataset, num_clients)
        return rng.permutation(client_ids(even_sizes(rows, num_clients)))

    return split


EXAMPLES = ({},)
