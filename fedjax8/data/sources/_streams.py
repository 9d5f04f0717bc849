"""Data sets that lie client by client, read one client at a time: into memory as a `Dataset`, or to a folder on disk."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.names import packed
from fedjax8.data.sources._build import build_dataset
from fedjax8.data.storage import save_clients
from fedjax8.durable import replace_file
from fedjax8.errors import UserError

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
"""In a folder that `mapped` reads: `{"num_classes", "class_names"}`, where these are known."""


def write_mapped(stream: Stream, folder: Path) -> None:
    """Writes a folder for the source `mapped`, holding one client in memory at a time."""
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} exists; choose another folder, or remove it first")
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        names: list[str] = []

        def columns(part: str = part, names: list[str] = names) -> Iterator[dict[str, np.ndarray]]:
            for name, found in getattr(stream, part)():
                names.append(name)
                yield found

        save_clients(columns(), folder / part, names)
    known = {name: stream.settings.get(name) for name in ("num_classes", "class_names")}
    replace_file(folder / CLASSES, (json.dumps({k: v for k, v in known.items() if v}) + "\n").encode())
