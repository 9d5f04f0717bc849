"""Clients of unequal size and equal label distribution: log-normal sizes, rows dealt at random.

    size_k = min_size + (N - K * min_size) * w_k / sum(w),   w_k = exp(sigma * normal_k)

rounded by largest remainder so that the sizes sum to N. sigma = 0 gives equal sizes; around 1 to 2, a few
clients hold much of the data. The log-normal weights are those of the unbalanced splits in the FedDyn
experiments (Acar et al., Federated learning based on dynamic regularization, ICLR 2021); the guaranteed
minimum is a project choice.
"""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions import Split
from fedjax8.data.partitions._common import checked_rows, client_ids


def quantity_skew(sigma: float = 1.0, *, min_size: int = 1) -> Split:
    """A random split into clients of log-normal size that uses every row.

    Args:
        sigma: spread of log size, 0 or more.
        min_size: rows that every client gets at least.
    """
    if not (sigma >= 0 and np.isfinite(sigma)):
        raise ValueError(f"sigma is {sigma}; it must be a finite number, 0 or more")
    if min_size < 1:
        raise ValueError(f"min_size is {min_size}; it must be at least 1")

    def split(rng: np.random.Generator, dataset: Dataset, num_clients: int) -> np.ndarray:
        rows = checked_rows(dataset, num_clients, min_size)
        log_weights = sigma * rng.standard_normal(num_clients)
        weights = np.exp(log_weights - log_weights.max())  # no overflow, however large sigma is
        sizes = min_size + _apportion(rows - num_clients * min_size, weights)
        return rng.permutation(client_ids(sizes))

    return split


def _apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """[K] int64 that sum to `total`, in proportion to the weights, rounded by largest remainder."""
    shares = total * (weights / weights.sum())
    whole = np.floor(shares).astype(np.int64)
    left = total - int(whole.sum())
    whole[np.argsort(whole - shares, kind="stable")[:left]] += 1
    return whole


EXAMPLES = ({}, {"sigma": 0.0}, {"sigma": 2.0, "min_size": 5})
