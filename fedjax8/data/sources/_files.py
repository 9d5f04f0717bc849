"""Where data sets lie: `NAME.npz` or the official raw files in the data directory, or the error where they are
missing."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset
from fedjax8.errors import UserError
from fedjax8.readers.arrays import read_cifar_archive, read_cifar_folder, read_idx, read_npz
from fedjax8.readers.pickled import read_cifar_pickles

_REQUIRED = ("x_train", "y_train", "x_test", "y_test")
_OPTIONAL = ("client_train", "client_test")
_IDX_FILES = {
    "x_train": ("train-images", 3),
    "y_train": ("train-labels", 1),
    "x_test": ("t10k-images", 3),
    "y_test": ("t10k-labels", 1),
}
# MNIST and Fashion-MNIST use the same file names; the first training labels of the official files tell them
# apart.
_FIRST_LABELS = {"mnist": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "fashion_mnist": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5)}


_TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}


class CifarLayout(NamedTuple):
    """Names and record form of one CIFAR set in its binary version."""

    archive: str
    folder: str
    parts: dict[str, tuple[str, ...]]  # part -> file names
    label_bytes: int  # labels at the head of a record; the last one counts
    python_folder: str = ""  # of the Python version, whose files have no `.bin`
    python_label: str = "labels"


def data_directory(name: str, data_dir: str | None) -> Path:
    """The directory to look for data set `name` in: `data_dir`, else `$FEDJAX8_DATA`; it must exist."""
    given = data_dir or os.environ.get("FEDJAX8_DATA")
    if not given:
        raise UserError(f"{name} needs a data directory: give --data_dir=DIR or set $FEDJAX8_DATA{_how_to_fetch(name)}")
    root = Path(given).expanduser()
    if not root.is_dir():
        origin = "--data_dir" if data_dir else "$FEDJAX8_DATA"
        raise UserError(f"{name}: {origin} is {given}, which is not a directory{_how_to_fetch(name, root)}")
    return root


def own_path(kind: str, data_dir: str | None, name: str) -> Path:
    """A file or folder of the user's own, in `data_dir`, else in `$FEDJAX8_DATA`, else in the working folder."""
    given = data_dir or os.environ.get("FEDJAX8_DATA") or "."
    path = Path(given).expanduser() / Path(name).expanduser()
    if not path.exists():
        raise UserError(f"{kind}: there is no {path}; give another directory with --data_dir or $FEDJAX8_DATA")
    return path


def load_npz_set(name: str, root: Path, **settings: Any) -> Dataset | None:
    """The set from `NAME.npz` in the data directory or its folder NAME; None where there is no such file."""
    for path in (root / f"{name}.npz", root / name / f"{name}.npz"):
        if path.is_file():
            return build_dataset(name, str(path), read_npz(path, _REQUIRED, _OPTIONAL), **settings)
    return None


def load_idx_set(name: str, data_dir: str | None, **settings: Any) -> Dataset:
    """The set from `NAME.npz`, else from the four official idx files, gzipped or not, also in torchvision's folders."""
    root = data_directory(name, data_dir)
    dataset = load_npz_set(name, root, **settings)
    if dataset is not None:
        return dataset
    missing = []
    raw = Path(_TORCHVISION[name]) / "raw"  # where torchvision keeps them
    for folder in (root / name, root, root / raw, root / name / raw):
        paths = {key: _find_idx(folder, stem, dims) for key, (stem, dims) in _IDX_FILES.items()}
        if all(paths.values()):
            arrays = {key: read_idx(path, _IDX_FILES[key][1]) for key, path in paths.items() if path}
            _check_identity(name, folder, arrays["y_train"])
            return build_dataset(name, str(folder), arrays, **settings)
        if any(paths.values()):
            absent = [f"{stem}-idx{dims}-ubyte" for key, (stem, dims) in _IDX_FILES.items() if not paths[key]]
            missing.append(f"{folder} lacks {' and '.join(absent)}")
    files = " + ".join(f"{stem}-idx{dims}-ubyte[.gz]" for stem, dims in _IDX_FILES.values())
    raise missing_set(name, root, (f"{name}.npz", files), missing)


def load_cifar_set(name: str, data_dir: str | None, layout: CifarLayout, **settings: Any) -> Dataset:
    """The set from `NAME.npz`, else from the binary files, unpacked or in their archive, or from those of Python."""
    root = data_directory(name, data_dir)
    dataset = load_npz_set(name, root, **settings)
    if dataset is not None:
        return dataset
    names, missing = [file for part in layout.parts.values() for file in part], []
    for folder in (root / name / layout.folder, root / layout.folder, root / name, root):
        absent = [file for file in names if not (folder / file).is_file()]
        if not absent:
            parts = {key: read_cifar_folder(folder, part, layout.label_bytes) for key, part in layout.parts.items()}
            return build_dataset(name, str(folder), _flatten(parts), **settings)
        if len(absent) < len(names):
            missing.append(f"{folder} lacks {', '.join(absent)}")
    for folder in (root / name / layout.python_folder, root / layout.python_folder):
        pickled = {part: [file.removesuffix(".bin") for file in files] for part, files in layout.parts.items()}
        if all((folder / file).is_file() for files in pickled.values() for file in files):
            parts = {key: read_cifar_pickles(folder, files, layout.python_label) for key, files in pickled.items()}
            return build_dataset(name, str(folder), _flatten(parts), **settings)
    for archive in (root / name / layout.archive, root / layout.archive):
        if archive.is_file():
            parts = read_cifar_archive(archive, layout.parts, layout.label_bytes)
            return build_dataset(name, str(archive), _flatten(parts), **settings)
    raise missing_set(name, root, (f"{name}.npz", layout.archive, f"{layout.folder}/{names[0]} and so on"), missing)


def missing_set(name: str, root: Path, files: tuple[str, ...], incomplete: list[str] | None = None) -> UserError:
    """The error for a set that is not there: what was looked for, where, and how to get it."""
    found = f" ({'; '.join(incomplete)})" if incomplete else ""
    return UserError(
        f"{name} not found: looked in {root} and {root / name} for {' or '.join(files)}{found}; "
        f"give another directory with --data_dir or $FEDJAX8_DATA{_how_to_fetch(name, root)}"
    )


def _how_to_fetch(name: str, root: Path | None = None) -> str:
    # What `fedjax8.fetch` knows.
    if name not in ("mnist", "fashion_mnist", "cifar10", "cifar100", "speech_commands"):
        return ""
    return f", or run: python -m fedjax8.fetch {name} --data_dir={root or 'DIR'}"


def _find_idx(folder: Path, stem: str, dims: int) -> Path | None:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{stem}{separator}idx{dims}-ubyte{suffix}"
            if path.is_file():
                return path
    return None


def _check_identity(name: str, folder: Path, labels: np.ndarray) -> None:
    for other, first in _FIRST_LABELS.items():
        if other != name and tuple(labels[: len(first)].tolist()) == first:
            raise UserError(
                f"{folder} holds the files of {other}, not of {name} (they share their names); keep each "
                f"set in a folder of its own: {name}/ and {other}/"
            )


def _flatten(parts: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    return {f"{key}_{part}": array for part, pair in parts.items() for key, array in zip("xy", pair, strict=True)}
