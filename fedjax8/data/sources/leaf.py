"""Data sets in the JSON layout of LEAF: FEMNIST, Shakespeare, Synthetic, and others of features or characters.

Caldas et al., LEAF: A benchmark for federated settings, arXiv:1812.01097. A folder, or its folder `data`, holds

    train/*.json, test/*.json    {"users": [u, ...], "num_samples": [n, ...], "user_data": {u: {"x": [..], "y": [..]}}}

and every user is a client, by name. x decides what the rows are:

    784 numbers                     images float32 [28, 28, 1] as they are in the file (FEMNIST: 1 is white), y classes
    F numbers                       features float32 [F], y classes
    80 characters, y one            ids of `shakespeare`, where the character after each 80 is to be predicted:
                                    y has `NO_TARGET` at every position but the last

Files are read one at a time. LEAF's tasks of words (Sent140, Reddit) need a vocabulary that the JSON files lack, and
CelebA's name images elsewhere; both are refused.

    python -m fedjax8.train --data_dir=leaf/data --config.data.name=leaf --config.data.folder=femnist \
        --config.model.name=cnn --config.partition.name=by_key --config.num_clients=0
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.checks import NO_TARGET
from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import check_standardize
from fedjax8.data.sources._files import own_path
from fedjax8.data.sources._streams import Clients, Stream, gathered
from fedjax8.data.sources.shakespeare import VOCABULARY, bytes_of, ids_of
from fedjax8.errors import UserError

_IMAGE = 784
_MOST_BYTES = 1 << 32
"""Of one file; those of LEAF have some hundred megabytes."""


def leaf(
    data_dir: str | None = None,
    folder: str = "",
    *,
    num_classes: int | None = None,
    standardize: str = "auto",
) -> Dataset:
    """The users of a folder as natural clients: x and y as the module says.

    Args:
        data_dir: None for `$FEDJAX8_DATA`, or else the working folder.
        folder: in it, with `train` and `test`, or with these in its folder `data`; needed.
        num_classes: largest label + 1 where None; 90 for characters.
        standardize: as of `npz`.

    Raises:
        UserError: no such folder, files that are not of this layout, users twice in a part, or rows that are words or
            names of image files.
    """
    check_standardize(standardize)
    return gathered(stream(data_dir, folder, num_classes=num_classes), standardize)


def stream(data_dir: str | None = None, folder: str = "", *, num_classes: int | None = None) -> Stream:
    """The same, client by client; see `leaf`."""
    if not folder:
        raise ValueError("folder is empty; it must be one with the folders train and test of LEAF's JSON files")
    root = own_path("leaf", data_dir, folder)
    root = root / "data" if not (root / "train").is_dir() and (root / "data" / "train").is_dir() else root
    files: dict[str, list[Path]] = {}
    for part in ("train", "test"):
        files[part] = sorted((root / part).glob("*.json"))
        if not files[part]:
            raise UserError(f"{root / part} holds no .json files; it must hold those that LEAF's preprocessing writes")
    first = next(_clients(files["train"]), None)
    if first is None:
        raise UserError(f"{root / 'train'}: no user has rows")
    characters = first[1]["x"].dtype == np.int32
    return Stream(
        Path(folder).name,
        str(root),
        lambda: _clients(files["train"]),
        lambda: _clients(files["test"]),
        {"num_classes": VOCABULARY if characters else num_classes},
    )


def _clients(files: list[Path]) -> Clients:
    """Users with rows, file by file."""
    seen: set[str] = set()
    for path in files:
        for user, rows in _users(path):
            if user in seen:
                raise UserError(f"{path}: user {user!r:.80} is in this part twice; users must differ")
            seen.add(user)
            columns = _columns(f"{path}: user {user!r:.80}", rows)
            if len(columns["y"]):
                yield user, columns


def _users(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """`(user, {"x": [n], "y": [n]})` of one file, checked against its list of users and numbers of samples."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"larger than {_MOST_BYTES} bytes; split it")
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
        users, counts, data = found["users"], found["num_samples"], found["user_data"]
        if not isinstance(users, list) or not isinstance(data, dict) or not all(isinstance(u, str) for u in users):
            raise ValueError("users must be a list of names, and user_data an object")
        if not isinstance(counts, list) or len(counts) != len(users):
            raise ValueError(f"num_samples must have a number for each of the {len(users)} users")
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        said = f"it lacks {error}" if isinstance(error, KeyError) else " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a file of LEAF's JSON layout ({said})") from error
    for user, count in zip(users, counts, strict=True):
        rows: Any = data.get(user)
        form = isinstance(rows, dict) and all(isinstance(rows.get(key), list) for key in "xy")
        if not form or not len(rows["x"]) == len(rows["y"]) == count:
            raise UserError(f"{path}: user {user!r:.80} must have lists x and y of num_samples = {count!r:.20} rows")
        yield user, rows


def _no_constant(text: str) -> None:
    raise ValueError(f"it holds {text}")


def _columns(where: str, rows: dict[str, Any]) -> dict[str, np.ndarray]:
    """x and y of one user."""
    x, y = rows["x"], rows["y"]
    if not y:
        return {"x": np.zeros(0, np.float32), "y": np.zeros(0, np.int32)}
    if isinstance(x[0], str):
        return _characters(where, x, y)
    if isinstance(x[0], list) and x[0] and isinstance(x[0][0], str | list):
        raise UserError(f"{where}: rows are texts of words, as of Sent140 and Reddit, which are not read; convert them")
    try:
        features, labels = np.asarray(x), np.asarray(y)
    except (ValueError, OverflowError):  # rows of several lengths
        features, labels = np.zeros(0, object), np.zeros(0, object)
    if (
        features.ndim != 2
        or features.dtype.kind not in "iuf"
        or labels.shape != (len(x),)
        or labels.dtype.kind not in "iuf"
    ):
        raise UserError(f"{where}: x must be rows of equally many numbers, and y a number for each")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise UserError(f"{where}: y must be classes, whole numbers from 0")
    if labels.min() < 0 or labels.max() > np.iinfo(np.int32).max:
        raise UserError(f"{where}: labels run from {labels.min()} to {labels.max()}; they must be from 0")
    features = features.astype(np.float32)
    if features.shape[1] == _IMAGE:
        features = features.reshape(-1, 28, 28, 1)
    return {"x": features, "y": labels.astype(np.int32)}


def _characters(where: str, x: list[Any], y: list[Any]) -> dict[str, np.ndarray]:
    """Ids of the characters, and the target after the last of each row."""
    if not all(isinstance(text, str) for text in [*x, *y]):
        if isinstance(x[0], str) and x[0].lower().endswith((".jpg", ".png")):
            raise UserError(f"{where}: rows name image files, as of CelebA, which are not read; use image_folder or hf")
        raise UserError(f"{where}: x and y must both be texts, or both numbers")
    lengths = {len(text) for text in x}
    if len(lengths) > 1 or 0 in lengths or {len(text) for text in y} != {1}:
        raise UserError(
            f"{where}: x must be texts of one length and y a character each, as of LEAF's Shakespeare; texts of other "
            "tasks are not read"
        )
    ids = ids_of(bytes_of("".join(x))).reshape(len(x), -1)
    targets = np.full(ids.shape, NO_TARGET, np.int32)
    targets[:, -1] = ids_of(bytes_of("".join(y)))
    return {"x": ids, "y": targets}


EXAMPLES = ({"folder": "femnist_leaf"},)
