"""A data set larger than memory, whose natural clients are kept in a folder: opened in a moment, read where it is used.

The folder has two parts, `train` and `test`, each written by `fedjax8.data.save_clients` (client by client, as they
come) or `save_federated`, with the columns `x` (uint8, float32 or int32) and `y` (int32 labels from 0; float32 `[N]` or
`[N, K]` for regression; uint8 `[N, L]` of 0 and 1 for several labels a row). `python -m fedjax8.convert` makes such a
folder of any other source, with names of clients, and of classes in `classes.json`.

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
from fedjax8.data.sources._streams import read_known
from fedjax8.data.storage import open_federated, read_header
from fedjax8.errors import UserError
from fedjax8.given import read_object
from fedjax8.types import CLASSES, MARKS, VALUES

_MEASURED = "measured.json"
_TARGETS = {"int32": CLASSES, "float32": VALUES, "uint8": MARKS}


def mapped(
    data_dir: str | None = None,
    folder: str = "",
    *,
    num_classes: int | None = None,
    standardize: str = "auto",
) -> Dataset:
    """The set in a folder of the data directory, its clients as windows for the partition `by_key`.

    Args:
        data_dir: None for `$FEDJAX8_DATA`.
        folder: with parts `train` and `test`; needed.
        num_classes: largest label + 1 where None.
        standardize: as of `npz`.
    """
    check_standardize(standardize)
    if not folder:
        raise ValueError("folder is empty; it must be one in the data directory with parts train and test")
    path = data_directory(folder, data_dir) / folder
    parts = {part: open_federated(path / part) for part in ("train", "test")}
    for part, data in parts.items():
        _check_columns(path / part, data)
    targets = _TARGETS[parts["train"].columns["y"].dtype.name]
    measured = _measure(path, parts, standardize, targets)
    known = read_known(path)
    num_classes = known.get("num_classes") if num_classes is None else num_classes
    if targets != CLASSES:
        num_classes = None
    if num_classes is not None and num_classes < measured["num_classes"]:
        raise UserError(
            f"num_classes is {num_classes}, but {path} has labels up to {measured['num_classes'] - 1}; use at least "
            f"{measured['num_classes']}"
        )
    return Dataset(
        train=parts["train"].columns,
        test=parts["test"].columns,
        num_classes=None if targets != CLASSES else num_classes or measured["num_classes"],
        mean=tuple(measured["mean"]),
        std=tuple(measured["std"]),
        name=path.name,
        clients=Windows(None, parts["train"].starts, parts["train"].sizes, parts["train"].names),
        test_clients=Windows(None, parts["test"].starts, parts["test"].sizes, parts["test"].names),
        constants=("num_classes",) * (num_classes is not None and not known.get("counted", False))
        + ("mean",) * (parts["train"].columns["x"].dtype == np.int32),
        class_names=tuple(known.get("class_names") or ()),
        feature_names=tuple(known.get("feature_names") or ()),
        learned=tuple(known.get("learned") or ()),
    )


def _check_columns(where: Path, data: FederatedData) -> None:
    """Raises UserError for columns that `build_dataset` would have to convert in memory."""
    for name, dtypes in (("x", ("uint8", "float32", "int32")), ("y", tuple(_TARGETS))):
        if name not in data.columns:
            raise UserError(f"{where} has columns {', '.join(data.columns)}; it needs x and y")
        single = name == "y" and data.columns[name].dtype == np.uint8 and data.columns[name].ndim < 2
        if data.columns[name].dtype not in map(np.dtype, dtypes) or single:
            raise UserError(f"{where}: {name} is {data.columns[name].dtype}; write it as {' or '.join(dtypes)}")


def _measure(path: Path, parts: dict[str, FederatedData], standardize: str, targets: str) -> dict[str, Any]:
    """`num_classes`, `mean` and `std`: as measured before on these very parts, else by reading all rows."""
    depends = {"parts": {part: read_header(path / part)["id"] for part in parts}, "standardize": standardize}
    depends |= {"targets": targets} if targets != CLASSES else {}
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
