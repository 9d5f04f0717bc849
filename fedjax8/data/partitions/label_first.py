"""Label skew by one class: its rows come first, and all are cut into K contiguous parts ("Non-IID label Y").

The first clients hold nothing but label Y, one more may be mixed, and the others have none of it. On MNIST with 60
clients, five hold only the digit 0 and a sixth mostly. It is the split of the experiments in Theologitis et al.,
Communication-efficient distributed deep learning via federated dynamic averaging, EDBT 2025 (arXiv 2405.20988), with
labels 0 and 8. The authors keep the stored order otherwise. Here rows are shuffled first, so that the split depends on
the seed and not on the order of a file.
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows, client_ids, even_sizes, row_labels
from fedjax8.errors import UserError


def label_first(label: int = 0) -> Split:
    """A split into clients of equal size (to within one row) that uses every row.

    Args:
        label: the class whose rows come first; a `UserError` from the split if no row has it.
    """
    if label < 0 or int(label) != label:
        raise ValueError(f"label is {label}; it must be a whole number, at least 0")

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        rows, labels = checked_rows(dataset, num_clients), row_labels(dataset)
        shuffled = rng.permutation(rows)
        is_first = labels[shuffled] == label
        if not is_first.any():
            raise UserError(
                f"label is {label}, but no row of {dataset.name} has it; labels are below {dataset.num_classes}"
            )
        owners = np.empty(rows, np.int32)
        owners[np.concatenate([shuffled[is_first], shuffled[~is_first]])] = client_ids(even_sizes(rows, num_clients))
        return owners

    return split


EXAMPLES = ({}, {"label": 4})
