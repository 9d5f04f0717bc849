"""Data sets read one client at a time: into memory as a `Dataset`, or to a folder on disk."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.data.federated import Dataset, FederatedData
from fedjax8.data.names import packed
from fedjax8.data.sources._build import build_dataset
from fedjax8.data.storage import save_clients, save_federated
from fedjax8.durable import make_folder, replace_file
from fedjax8.errors import UserError
from fedjax8.given import has_form, read_object

Clients = Iterator[tuple[str, dict[str, np.ndarray]]]
"""Name and columns x and y of a client, one after another."""


class Stream(NamedTuple):
    """A data set as clients that come one after another, as often as they are asked for."""

    name: str
    where: str
    """The file or folder, for errors."""
    train: Callable[[], Clients]
    test: Callable[[], Clients]
    settings: Mapping[str, Any] = {}
    """Of `build_dataset`: `num_classes`, `class_names`, `targets` and so on."""


def gathered(stream: Stream, standardize: str = "auto") -> Dataset:
    """The whole data set in memory; clients have the numbers of their sorted names, over both parts."""
    arrays: dict[str, np.ndarray] = {}
    names: dict[str, list[str]] = {}
    sizes: dict[str, list[int]] = {}
    for part in ("train", "test"):
        found: list[dict[str, np.ndarray]] = []
        names[part], sizes[part] = [], []
        for name, columns in getattr(stream, part)():
            names[part].append(name)
            sizes[part].append(len(columns["y"]))
            found.append(columns)
        if not any(sizes[part]):
            raise UserError(f"{stream.where}: no client has rows in its {part} part")
        for column in "xy":
            try:
                arrays[f"{column}_{part}"] = np.concatenate([c[column] for c in found if len(c["y"])])
            except ValueError as error:
                raise UserError(f"{stream.where}: clients of {part} have rows of several shapes ({error})") from error
    numbers = {name: i for i, name in enumerate(sorted({*names["train"], *names["test"]}))}
    for part in ("train", "test"):
        packed(names[part], f"{stream.where}: {part}")  # refuses two alike
        own = np.array([numbers[name] for name in names[part]], np.int32)
        arrays[f"client_{part}"] = np.repeat(own, sizes[part])
    return build_dataset(
        stream.name,
        stream.where,
        arrays,
        standardize=standardize,
        client_names=packed(numbers, stream.where),
        **stream.settings,
    )


CLASSES = "classes.json"
"""In a folder that `mapped` reads: what is known of classes and features."""
_FORM = {"num_classes?": int, "counted?": bool, "class_names?": [str], "feature_names?": [str], "learned?": [str]}


def read_known(folder: Path) -> dict[str, Any]:
    """The contents of `classes.json`, empty where there is none; UserError where it is damaged."""
    try:
        found = read_object(folder / CLASSES)
    except OSError:
        return {}
    if found is None or not has_form(found, _FORM) or found.get("num_classes") == 0:
        raise UserError(f"{folder / CLASSES} is damaged; convert the folder again")
    return found


def write_mapped(made: Stream | Dataset, folder: Path) -> None:
    """Writes a folder for the source `mapped`: of a stream holding one client in memory at a time, of a data set its
    natural clients, or all rows as one client where it has none.

    UserError where the folder is not empty; what is written only in part is removed.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists; choose another folder, or remove it first")
    try:
        make_folder(folder)
        for part in ("train", "test"):
            _write_part(made, part, folder / part)
        known = made.settings if isinstance(made, Stream) else _known_of(made)
        kept = {name: known[name] for name in (text.removesuffix("?") for text in _FORM) if known.get(name)}
        replace_file(folder / CLASSES, (json.dumps(kept) + "\n").encode())
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _write_part(made: Stream | Dataset, part: str, folder: Path) -> None:
    if isinstance(made, Stream):
        names: list[str] = []

        def columns() -> Iterator[dict[str, np.ndarray]]:
            for name, found in getattr(made, part)():
                names.append(name)
                yield found

        save_clients(columns(), folder, names)
        return
    rows = getattr(made, part)
    owners = made.owners if part == "train" else made.test_owners
    if part == "train" and made.clients is not None:
        order, starts, sizes, own_names = made.clients
        save_federated(FederatedData(rows, order, starts, sizes, names=own_names), folder)
        return
    if owners is None:
        owners = np.zeros(len(rows["y"]), np.int32)
        save_federated(FederatedData.from_owners(rows, owners, 1), folder)
        return
    natural, own = np.unique(owners, return_inverse=True)
    named = natural.astype("S") if made.client_names is None else made.client_names[natural]
    save_federated(FederatedData.from_owners(rows, own.reshape(-1), len(natural), named), folder)


def _known_of(made: Dataset) -> dict[str, Any]:
    return {
        "num_classes": made.num_classes,
        "counted": "num_classes" not in made.constants,
        "class_names": made.class_names,
        "feature_names": made.feature_names,
        "learned": made.learned,
    }
