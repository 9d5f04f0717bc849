"""Pathological label skew: rows sorted by label, cut into K * s equal shards, s shards dealt to each client.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, section 3 (200
shards of 300 MNIST digits, two per client). A client sees at most about s classes (s more where shards
straddle two classes).
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows, even_sizes, row_labels, rows_by_class


def shards(shards_per_client: int = 2) -> Split:
    """A split by dealt label shards that uses every row.

    Client sizes differ by at most `shards_per_client` rows.
    """
    if shards_per_client < 1 or int(shards_per_client) != shards_per_client:
        raise ValueError(f"shards_per_client is {shards_per_client}; it must be a whole number, at least 1")

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        rows, labels = checked_rows(dataset, num_clients, shards_per_client), row_labels(dataset)
        dealt = rng.permutation(np.repeat(np.arange(num_clients, dtype=np.int32), shards_per_client))
        owners = np.empty(rows, np.int32)
        owners[rows_by_class(rng, labels)] = np.repeat(dealt, even_sizes(rows, len(dealt)))
        return owners

    return split


EXAMPLES = ({}, {"shards_per_client": 1}, {"shards_per_client": 3})
