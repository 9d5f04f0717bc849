"""Helpers of partitions: checks, even sizes, and rows in random order within their class."""

import numpy as np

from fedjax8.data.checks import check_classes
from fedjax8.data.federated import Dataset
from fedjax8.errors import UserError


def checked_rows(dataset: Dataset, num_clients: int, rows_per_client: int = 1) -> int:
    """Number of training rows; UserError unless they give every client `rows_per_client`."""
    rows = len(dataset.train["y"])
    if num_clients < 1:
        raise UserError(f"num_clients is {num_clients}; it must be at least 1")
    if num_clients * rows_per_client > rows:
        raise UserError(
            f"{num_clients} clients with at least {rows_per_client} rows each need "
            f"{num_clients * rows_per_client} rows, but {dataset.name} has {rows}; "
            f"use at most {rows // rows_per_client} clients"
        )
    return rows


def num_classes(dataset: Dataset) -> int:
    """Number of classes; UserError where targets are no class numbers."""
    if dataset.num_classes is None:
        raise UserError(
            f"the targets of {dataset.name} are no class numbers, so its rows cannot be split by label; use by_key, "
            "iid or quantity_skew"
        )
    return dataset.num_classes


def row_labels(dataset: Dataset) -> np.ndarray:
    """[N] int32: the label of each training row; UserError where rows are label sequences."""
    labels, number = dataset.train["y"], num_classes(dataset)
    if labels.ndim > 1:
        raise UserError(
            f"{dataset.name} has a label for each of {labels.shape[1]} positions of a row, so its rows cannot be split "
            "by label; use by_key, iid or quantity_skew"
        )
    if isinstance(labels, np.memmap):  # those in memory are checked already
        check_classes(labels, number, f"{dataset.name}: train")
    return labels


def even_sizes(rows: int, num_clients: int) -> np.ndarray:
    """[K] int64 sizes that sum to `rows` and differ by at most one, larger ones first."""
    sizes = np.full(num_clients, rows // num_clients, np.int64)
    sizes[: rows % num_clients] += 1
    return sizes


def client_ids(sizes: np.ndarray) -> np.ndarray:
    """[sum(sizes)] int32: each client's number repeated as often as it has rows."""
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def rows_by_class(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    """[N] row numbers, classes in ascending order, rows in random order within a class."""
    shuffled = rng.permutation(len(labels))
    return shuffled[np.argsort(labels[shuffled], kind="stable")]
