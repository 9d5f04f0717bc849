"""Arrays that take long to compute, kept in files that are written whole or not at all and never trusted blindly.

A file holds the array `x` and the `key` that it was computed for, a SHA-256 of all that it depends on. It is
written under another name and renamed once complete. On reading, checksums, key, shape and dtype must all be
right; else the file counts as absent and is computed anew.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from fedjax8.readers.arrays import read_npz

_FORMAT_VERSION = 1  # raise it when the meaning of the files changes


def cache_folders(data_folder: Path) -> list[Path]:
    """Places for results computed from a folder, best first.

    `$FEDJAX8_CACHE` where set; then `_fedjax8_cache` in the folder itself; then `fedjax8` in `$XDG_CACHE_HOME`
    (`~/.cache` where unset), for data that one may only read.
    """
    given = os.environ.get("FEDJAX8_CACHE")
    personal = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax8"
    return [*([Path(given).expanduser()] if given else []), data_folder / "_fedjax8_cache", personal]


def cache_key(*depends_on: object) -> str:
    """64 hexadecimal digits that stand for the given values (of JSON's kinds) and the format of the files."""
    return hashlib.sha256(json.dumps([_FORMAT_VERSION, *depends_on]).encode()).hexdigest()


def cached_array(
    folders: list[Path], name: str, key: str, shape: tuple[int, ...], blocks: Callable[[], Iterable[np.ndarray]]
) -> np.ndarray:
    """float32 `shape`: from a valid file in one of the folders, else computed and kept in the first that takes it.

    Large arrays come memory-mapped. Where no folder can be written (or none is given), the array is made in memory.

    Args:
        folders: to read from and write to, in this order.
        name: start of the file name, for people.
        key: from `cache_key`.
        shape: of the whole array.
        blocks: when called, gives the array in consecutive pieces along its first axis.
    """
    paths = [folder / f"{name}-{key[:16]}.npz" for folder in folders]
    for path in paths:
        kept = _read_kept(path, key, shape)
        if kept is not None:
            return kept
    for path in paths:
        try:
            _write(path, key, shape, blocks)
        except OSError as error:  # read-only, full, not a directory: the next place may do
            logging.getLogger(__name__).info("%s cannot be written (%s)", path, error)
            continue
        kept = _read_kept(path, key, shape)
        if kept is not None:
            return kept
    made, row = np.empty(shape, np.float32), 0
    for block in blocks():
        made[row : row + len(block)] = block
        row += len(block)
    return made


def _read_kept(path: Path, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
    """The array, or None where the file is absent, damaged or of something else."""
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # reads all: parts that are mapped later have no other check
                return None
        kept = read_npz(path, ("key", "x"))
    except Exception:  # damage can surface as almost any error, and the answer is always the same
        return None
    x = kept["x"]
    valid = str(kept["key"]) == key and x.shape == shape and x.dtype == np.float32 and x.flags.c_contiguous
    return x if valid else None


def _write(path: Path, key: str, shape: tuple[int, ...], blocks: Callable[[], Iterable[np.ndarray]]) -> None:
    """Writes the file as `numpy.savez` would, one block at a time; it appears complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("key.npy", "w") as member:
                np.lib.format.write_array(member, np.array(key), allow_pickle=False)
            with archive.open("x.npy", "w", force_zip64=True) as member:
                header = {"descr": "<f4", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
                for block in blocks():
                    member.write(block.astype("<f4", copy=False).tobytes())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
