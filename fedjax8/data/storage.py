"""Federated data on disk, for sets larger than memory: written once, then mapped and read where it is used.

A folder holds

    federated.json      format version, an id of its own, numbers of rows and clients, dtype and row shape by column
    starts.npy          int64 [K]
    sizes.npy           int32 [K]
    names.npy           bytes [K]: ids of the clients, where the data has them
    columns/NAME.npy    [M, ...], rows in the order of the clients

so one client's rows lie side by side and are one read, and no order has to be kept. `numpy.load` reads the files. A
folder is written under another name and renamed once complete. Opening it reads the headers, starts and sizes, which
are checked; rows are checked when they are read.

    save_clients(({"x": x, "y": y} for x, y in my_users), "data/reddit/train")
    data = open_federated("data/reddit/train")
"""

import array
import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.checks import check_windows
from fedjax8.data.federated import FederatedData
from fedjax8.data.names import LONGEST, packed
from fedjax8.errors import UserError
from fedjax8.given import read_object

HEADER = "federated.json"
_FORMAT = 1  # raise it when the files change their meaning
_CLIENTS_AT_ONCE = 1 << 14  # 192 kB of starts and sizes
_BLOCK_BYTES = 1 << 26  # of rows held at once while they are written


def save_federated(data: FederatedData, folder: str | Path) -> None:
    """Writes the data to a new folder, a block at a time: columns may be larger than memory.

    A row comes out as often as `data.order` lists it, and windows stay as they are, also where they overlap.

    Raises:
        UserError: the folder exists and is not empty, cannot be written, or a column cannot be stored.
    """
    with _new_folder(Path(folder)) as writer:
        columns = {name: np.asanyarray(column) for name, column in data.columns.items()}
        row_bytes = sum(column.nbytes for column in columns.values()) // max(data.num_positions, 1)
        rows_at_once = max(1, _BLOCK_BYTES // max(row_bytes, 1))
        writer.append({name: column[:0] for name, column in columns.items()})
        for first in range(0, data.num_positions, rows_at_once):
            places = slice(first, first + rows_at_once)
            rows = places if data.order is None else data.order[places]
            writer.append({name: column[rows] for name, column in columns.items()})
        writer.finish(data.starts, data.sizes, data.names)


def save_clients(
    clients: Iterable[Mapping[str, np.ndarray]], folder: str | Path, names: Iterable[str] | None = None
) -> None:
    """Writes clients to a new folder, one after another as they come; only one is held in memory.

    Args:
        clients: columns, name -> [size, ...], of client 0, 1, ...: the same names, dtypes and row shapes for all.
        folder: new or empty.
        names: ids of the clients, read when all clients have been; None for clients without names.

    Raises:
        UserError: as `save_federated`; or there are no clients, or one is unlike the first; names that are not those
            of as many clients, or two alike.
    """
    sizes = array.array("i")
    with _new_folder(Path(folder)) as writer:
        for columns in clients:
            sizes.append(writer.append({name: np.asarray(column) for name, column in columns.items()}))
        if not sizes:
            raise UserError(f"{folder}: no clients given; at least one is needed")
        counted = np.asarray(sizes, np.int32)
        named = None if names is None else packed(names, str(folder))
        if named is not None and len(named) != len(counted):
            raise UserError(f"{folder}: {len(named)} names for {len(counted)} clients; each client needs one")
        writer.finish(np.cumsum(counted, dtype=np.int64) - counted, counted, named)


def open_federated(folder: str | Path) -> FederatedData:
    """The data in a folder, memory-mapped and read-only; no rows are read, whatever their number.

    UserError where the folder or a file is missing, is not as it was written, or a client's rows are not there.
    """
    folder = Path(folder)
    header = read_header(folder)
    rows, num_clients = header["num_rows"], header["num_clients"]
    columns = {
        name: _map(folder / "columns" / f"{name}.npy", dtype, (rows, *row_shape))
        for name, (dtype, row_shape) in header["columns"].items()
    }
    starts = _map(folder / "starts.npy", np.dtype(np.int64), (num_clients,))
    sizes = _map(folder / "sizes.npy", np.dtype(np.int32), (num_clients,))
    _check_windows(folder, starts, sizes, rows)
    length = header.get("name_bytes")
    names = None if length is None else _map(folder / "names.npy", np.dtype(f"S{length}"), (num_clients,))
    return FederatedData(columns, None, starts, sizes, checked=True, names=names)


def read_header(folder: Path) -> dict[str, Any]:
    """The content of `federated.json`; UserError where there is none, one of another format, or a damaged one.

    Columns come as name -> (dtype, row shape).
    """
    try:
        header = read_object(folder / HEADER)
    except OSError as error:
        raise UserError(
            f"{folder} does not hold federated data; write it with fedjax8.data.save_federated or save_clients"
        ) from error
    if header is not None and header.get("format") != _FORMAT and "format" in header:
        raise UserError(
            f"{folder} is of format {header['format']!r:.20}, but {_FORMAT} is needed; write it again with this version"
        )
    try:
        if header is None or not isinstance(header["id"], str):
            raise ValueError("no JSON object of ours")
        whole = lambda value, least: isinstance(value, int) and least <= value < 1 << 48
        if not whole(header["num_rows"], 0) or not whole(header["num_clients"], 1) or not header["columns"]:
            raise ValueError("its numbers of rows and clients, or its columns, cannot be")
        if "name_bytes" in header and not (whole(header["name_bytes"], 1) and header["name_bytes"] <= LONGEST):
            raise ValueError(f"name_bytes is {header['name_bytes']!r:.20}")
        columns = {}
        for name, (dtype, row_shape) in header["columns"].items():
            check_name(name)
            if np.dtype(dtype).kind not in "biufc" or not all(whole(length, 0) for length in row_shape):
                raise ValueError(f"column {name!r} is {dtype} {row_shape}")
            columns[name] = np.dtype(dtype), tuple(row_shape)
    except (ValueError, TypeError, KeyError, AttributeError, SyntaxError) as error:
        raise UserError(
            f"{folder / HEADER} is damaged ({' '.join(str(error).split())}); write the folder again"
        ) from error
    return header | {"columns": columns}


def check_name(name: str) -> None:
    """UserError unless a column of this name can be a file in its folder."""
    if not isinstance(name, str) or not name or name.startswith(".") or any(c in name for c in "/\\\0"):
        raise UserError(f"column {name!r} cannot be the name of a file; use letters, digits and _")


def _check_windows(folder: Path, starts: np.ndarray, sizes: np.ndarray, rows: int) -> None:
    """UserError unless every client lies within the rows. Files are read, not mapped: a map would stay in memory."""
    try:
        with (folder / "starts.npy").open("rb") as one, (folder / "sizes.npy").open("rb") as two:
            one.seek(starts.offset)  # type: ignore[attr-defined]  # of a memory map
            two.seek(sizes.offset)  # type: ignore[attr-defined]
            for first in range(0, len(starts), _CLIENTS_AT_ONCE):
                count = min(_CLIENTS_AT_ONCE, len(starts) - first)
                check_windows(np.fromfile(one, np.int64, count), np.fromfile(two, np.int32, count), rows, "rows")
    except (UserError, OSError) as error:
        raise UserError(f"{folder}: {error}; write the folder again") from error


class _Column:
    """An npy file that grows."""

    def __init__(self, path: Path, like: np.ndarray, kinds: str = "biufc"):
        if like.dtype.kind not in kinds:
            raise UserError(f"column {path.stem} is {like.dtype}; it must be of a number type that NumPy itself has")
        self.dtype, self.row_shape = like.dtype, like.shape[1:]
        self._file = path.open("wb")
        self._write_header(0)
        self._start = self._file.tell()

    def append(self, rows: np.ndarray) -> None:
        self._file.write(np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data)

    def complete(self, rows: int) -> None:
        """Puts the number of rows into the header; returns when the file is on disk."""
        self._file.seek(0)
        self._write_header(rows)
        if self._file.tell() != self._start:  # NumPy leaves room for a first axis of any length
            raise RuntimeError("the header of an npy file has grown beyond the room that NumPy left for it")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        self._file.close()

    def _write_header(self, rows: int) -> None:
        descr = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (rows, *self.row_shape)}
        np.lib.format.write_array_header_1_0(self._file, header)


class _Writer:
    """Writer of the files in `part`, which becomes `folder`."""

    def __init__(self, part: Path, folder: Path):
        self._part, self._folder, self._rows, self._blocks = part, folder, 0, 0
        self.columns: dict[str, _Column] = {}

    def append(self, columns: Mapping[str, np.ndarray]) -> int:
        """Adds rows, the first call also says which columns there are; returns how many rows."""
        where = f"client {self._blocks}"
        lengths: dict[str, Any] = {name: len(column) if column.ndim else None for name, column in columns.items()}
        if not lengths or None in lengths.values() or len(set(lengths.values())) != 1:
            raise UserError(f"{where}: columns have lengths {lengths}; there must be one or more, of equal length")
        if not self._blocks:
            for name, column in columns.items():
                check_name(name)
                with _writing(self._folder):
                    self.columns[name] = _Column(self._part / "columns" / f"{name}.npy", column)
        found = {name: (column.dtype, column.shape[1:]) for name, column in columns.items()}
        wanted = {name: (column.dtype, column.row_shape) for name, column in self.columns.items()}
        if found != wanted:
            raise UserError(f"{where} has columns {found}, unlike those before it, {wanted}")
        with _writing(self._folder):
            for name, file in self.columns.items():
                file.append(columns[name])
        length = next(iter(lengths.values()))
        self._rows, self._blocks = self._rows + length, self._blocks + 1
        return length

    def finish(self, starts: np.ndarray, sizes: np.ndarray, names: np.ndarray | None = None) -> None:
        named = {} if names is None else {"name_bytes": names.dtype.itemsize}
        header = {
            "format": _FORMAT,
            "id": secrets.token_hex(8),
            "num_rows": self._rows,
            "num_clients": len(starts),
            "columns": {name: [column.dtype.str, list(column.row_shape)] for name, column in self.columns.items()},
            **named,
        }
        with _writing(self._folder):
            for column in self.columns.values():
                column.complete(self._rows)
            for name, values in (("starts", starts), ("sizes", sizes), ("names", names)):
                if values is None:
                    continue
                column = _Column(self._part / f"{name}.npy", values, "iS")
                column.append(values)
                column.complete(len(values))
            with (self._part / HEADER).open("w") as file:
                file.write(json.dumps(header, indent=2) + "\n")
                file.flush()
                os.fsync(file.fileno())


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[_Writer]:
    """Writes next to the folder and renames at the end."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists; choose another folder, or remove it first")
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    writer = _Writer(part, folder)
    try:
        with _writing(folder):
            (part / "columns").mkdir(parents=True)
        yield writer
        with _writing(folder):
            os.replace(part, folder)
    finally:
        for column in writer.columns.values():
            column.close()
        shutil.rmtree(part, ignore_errors=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns errors of writing into UserError; not around the caller's clients, which may fail on their own account."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); make room or choose another folder") from error


def _map(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    try:
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(mapped, np.memmap) and mapped.size:
            raise ValueError("not an npy file")
    except Exception as error:  # of a damaged header almost anything
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is missing or damaged ({reason}); write the folder again") from error
    if mapped.dtype != dtype or mapped.shape != shape:
        raise UserError(
            f"{path} is {mapped.dtype} {mapped.shape}, but {dtype} {shape} was written; write the folder again"
        )
    return mapped
