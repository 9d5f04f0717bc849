"""Label skew for a share of the rows: part of them sorted by label, part dealt at random ("Non-IID X%").

    client k owns part k of K of the sorted rows and part k of K of the others

where the sorted rows are a share X of all rows, cut into contiguous parts: the split of the experiments in Theologitis
et al., Communication-efficient distributed deep learning via federated dynamic averaging, EDBT 2025 (arXiv 2405.20988),
with X = 60%. The authors take the first X% of the rows as they are stored and cut the others in stored order. Here rows
are shuffled first, so that the split depends on the seed and not on the order of a file.
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows, client_ids, even_sizes, row_labels


def sorted_share(share: float = 0.6) -> Split:
    """A split that uses every row: client sizes, and their numbers of sorted rows, differ by at most one.

    Args:
        share: of the rows that are sorted, from 0 (as `iid`) to 1, rounded to whole rows.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it must be at least 0 and at most 1")

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        rows, labels = checked_rows(dataset, num_clients), row_labels(dataset)
        count = round(share * rows)
        order = rng.permutation(rows)
        order[:count] = order[:count][np.argsort(labels[order[:count]], kind="stable")]
        sizes = even_sizes(count, num_clients)
        owners = np.empty(rows, np.int32)
        owners[order[:count]] = client_ids(sizes)
        owners[order[count:]] = client_ids(even_sizes(rows, num_clients) - sizes)  # never negative: count <= rows
        return owners

    return split


EXAMPLES = ({}, {"share": 0.0}, {"share": 0.25}, {"share": 1.0})
