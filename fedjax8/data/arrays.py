"""A data set from arrays in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax8.data.checks import common_length
from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset
from fedjax8.errors import UserError
from fedjax8.types import CLASSES

_TEST_STREAM = 0x7E57


def from_arrays(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray | None = None,
    y_test: np.ndarray | None = None,
    *,
    clients: Sequence[Any] | np.ndarray | None = None,
    clients_test: Sequence[Any] | np.ndarray | None = None,
    test_share: float = 0.2,
    targets: str = CLASSES,
    num_classes: int | None = None,
    name: str = "arrays",
    seed: int = 0,
) -> Dataset:
    """A checked data set of rows in memory, with mean and deviation measured on its training rows.

    Args:
      x: `[N, ...]`: uint8 (pixels), floating, or integers (symbols).
      y: targets `[N, ...]` of the kind `targets`.
      x_test: test rows; where None a share of the rows is drawn for it, whole clients' rows like others.
      y_test: their targets; given with `x_test` or not at all.
      clients: `[N]` integers from 0: the natural client of each row; None for none.
      clients_test: likewise of test rows.
      test_share: share of the rows that is drawn for testing where there are no test rows; at least one row.
      targets: one of `types.TARGETS`, by the task: class numbers, `values` for regression, `marks` for several labels.
      num_classes: largest label + 1 where None.
      name: of the data set, in messages and logs.
      seed: of the draw of test rows.

    Raises:
      UserError: arrays that do not fit each other, or are none that devices can hold.

    Example:
      >>> x = np.random.default_rng(0).standard_normal((10, 3), np.float32)
      >>> from_arrays(x, (x[:, 0] > 0).astype(int), test_share=0.5).num_classes
      2
    """
    columns = {"x": np.asarray(x), "y": np.asarray(y)} | ({} if clients is None else {"client": np.asarray(clients)})
    if (x_test is None) != (y_test is None):
        raise UserError("give x_test and y_test together, or neither, so that test rows are drawn")
    rows = common_length(columns, name)
    if x_test is None or y_test is None:
        if clients_test is not None:
            raise UserError("clients_test changes nothing without x_test: clients of drawn test rows are known")
        if not 0 < test_share < 1 or rows < 2:
            raise UserError(
                f"test_share is {test_share} of {rows} rows; it must be above 0 and below 1, of two rows or more"
            )
        order = np.random.default_rng([_TEST_STREAM, seed]).permutation(rows)
        number = min(max(1, round(test_share * rows)), rows - 1)
        test, train = np.sort(order[:number]), np.sort(order[number:])
        parts = {
            "train": {n: c[train] for n, c in columns.items()},
            "test": {n: c[test] for n, c in columns.items()},
        }
    else:
        parts = {"train": columns, "test": {"x": np.asarray(x_test), "y": np.asarray(y_test)}}
        if clients_test is not None:
            parts["test"]["client"] = np.asarray(clients_test)
    arrays = {f"{column}_{part}": values for part, given in parts.items() for column, values in given.items()}
    return build_dataset(name, name, arrays, num_classes=num_classes, targets=targets)
