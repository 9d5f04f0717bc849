"""A data set larger than memory, whose natural clients are kept in a folder: opened in a moment, read where it is used.

The folder has two parts, `train` and `test`, each written by `fedjax8.data.save_clients` (client by client, as they
come) or `save_federated`, with the columns `x` (uint8, float32 or int32) and `y` (int32 labels from 0; for the task
`regression` float32 numbers, for `multilabel` uint8 0 and 1).

    save_clients(({"x": x, "y": y} for x, y in train_users), "DATA/reddit/train")
    save_clients([{"x": x_test, "y": y_test}], "DATA/reddit/test")

    --data_dir=DATA --config.data.name=mapped --config.data.folder=reddit \
        --config.partition.name=by_key --config.num_clients=0

Rows and labels are checked, and mean and deviation of the training rows measured, in one pass the first time; the
result is kept in the folder as `measured.json`, with a checksum. Rows are checked again as a run reads them.
"""

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.federated import Dataset, FederatedData, Windows
from fedjax8.data.sources._build import build_dataset, check_standardize
from fedjax8.data.sources._files import data_directory
from fedjax8.data.storage import open_federated, read_header
from fedjax8.errors import UserError
from fedjax8.given import read_object
from fedjax8.types import CLASSES, MARKS, VALUES

_MEASURED = "measured.json"
_TARGET_DTYPES = {MARKS: "uint8", VALUES: "float32"}


def mapped(
    data_dir: str | None = None,
    folder: str = "",
    *,
    num_classes: int | None = None,
    standardize: str = "auto",
    targets: str = CLASSES,
) -> Dataset:
    """The set in a folder of the data directory, its clients as windows for the partition `by_key`.

    Args:
        data_dir: None for `$FEDJAX8_DATA`.
        folder: with parts `train` and `test`; needed.
        num_classes: largest label + 1 where None.
        standardize: as of `npz`.
        targets: supplied by the program, as of `npz`.
    """
    check_standardize(standardize)
    if not folder:
        raise ValueError("folder is empty; it must be one in the data directory with parts train and test")
    path = data_directory(folder, data_dir) / folder
    parts = {part: open_federated(path / part) for part in ("train", "test")}
    for part, data in parts.items():
        _check_columns(path / part, data, targets)
    measured = _measure(path, parts, standardize, targets)
    if num_classes is not None and measured["num_classes"] is not None and num_classes < measured["num_classes"]:
        raise UserError(
            f"num_classes is {num_classes}, but {path} has labels up to {measured['num_classes'] - 1}; use at least "
            f"{measured['num_classes']}"
        )
    return Dataset(
        train=parts["train"].columns,
        test=parts["test"].columns,
        num_classes=None if targets in _TARGET_DTYPES else num_classes or measured["num_classes"],
        mean=tuple(measured["mean"]),
        std=tuple(measured["std"]),
        name=path.name,
        clients=Windows(parts["train"].order, parts["train"].starts, parts["train"].sizes),
        constants=("num_classes",) * bool(num_classes) + ("mean",) * (parts["train"].columns["x"].dtype == np.int32),
    )


def _check_columns(where: Path, data: FederatedData, targets: str) -> None:
    """Raises UserError for columns that `build_dataset` would have to convert in memory."""
    for name, dtypes in (("x", ("uint8", "float32", "int32")), ("y", (_TARGET_DTYPES.get(targets, "int32"),))):
        if name not in data.columns:
            raise UserError(f"{where} has columns {', '.join(data.columns)}; it needs x and y")
        if data.columns[name].dtype not in map(np.dtype, dtypes):
            raise UserError(f"{where}: {name} is {data.columns[name].dtype}; write it as {' or '.join(dtypes)}")


def _measure(path: Path, parts: dict[str, FederatedData], standardize: str, targets: str) -> dict[str, Any]:
    """`num_classes`, `mean` and `std`: as measured before on these very parts, else by reading all rows."""
    depends = {"parts": {part: read_header(path / part)["id"] for part in parts}, "standardize": standardize}
    depends |= {"targets": targets} if targets in _TARGET_DTYPES else {}
    try:
        kept = read_object(path / _MEASURED) or {}
    except OSError:  # not measured yet
        kept = {}
    if kept.get("checksum") == _checksum(kept) and depends.items() <= kept.items():
        return kept
    arrays = {f"{name}_{part}": data.columns[name] for part, data in parts.items() for name in "xy"}
    dataset = build_dataset(path.name, str(path), arrays, standardize=standardize, targets=targets)
    measured = {"num_classes": dataset.num_classes, "mean": dataset.mean, "std": dataset.std, **depends}
    measured |= {"checksum": _checksum(measured)}
    part = path / f"{_MEASURED}.{os.getpid()}.part"
    try:
        part.write_text(json.dumps(measured, indent=2) + "\n")
        os.replace(part, path / _MEASURED)
    except OSError as error:  # a folder that one may only read is measured each time
        logging.getLogger(__name__).info("%s cannot be written (%s)", path / _MEASURED, error)
    return measured


def _checksum(measured: dict[str, Any]) -> str:
    """Of all but itself, so that a damaged file is measured anew."""
    rest = {name: value for name, value in measured.items() if name != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


EXAMPLES = ({"folder": "mapped"},)
