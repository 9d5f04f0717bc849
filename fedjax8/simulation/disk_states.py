"""The states of clients on disk, for stores too large for the device or for copying into every checkpoint."""

import json
import math
import os
import shutil
import tempfile
import weakref
from pathlib import Path

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.simulation.undo_log import append, read_blocks
from fedjax8.types import PyTree

KEEP_MARKS = 3
"""One more than checkpoints are kept: a mark is made before its checkpoint, and that before the oldest one goes."""

_FORMAT = 1  # of the folder; raise it when its files change their meaning
_HEADER, _ROWS, _UNDO = "header.json", "rows.bin", "undo-"
_LARGEST_CALL = 1 << 30  # bytes; the system moves at most 2 GiB in one call


class DiskStates:
    """States in a file of K rows: a byte that says whether the client has a state, then the bytes of its leaves.

    The file starts as one large hole. A row of a client that took no part yet is never written, takes no space on disk
    and reads as the initial state. Rows are read and written by position, not through a memory map, in which a full
    disk would kill the process without a word.

    In a folder of its own, an undo log makes the store return to each of the `KEEP_MARKS` newest marks, also after the
    process or the machine died. A new store is marked at round 0. Between marks the log grows by what the clients that
    took part had before. A temporary store has no log: nothing can go on from it.
    """

    def __init__(self, initial: PyTree, num_clients: int, folder: Path | None = None):
        self._like = jax.tree.map(np.asarray, initial)
        leaves, self._treedef = jax.tree.flatten(self._like)
        self._initial = np.concatenate([_as_bytes(leaf[None])[0] for leaf in leaves])
        self._num_clients, self._row_bytes = num_clients, len(self._initial)
        self._lasting = folder is not None
        header = {
            "format": _FORMAT,
            "num_clients": num_clients,
            "leaves": {name: f"{x.dtype.name} {list(x.shape)}" for name, x in trees.named_leaves(self._like).items()},
        }
        self._folder = Path(tempfile.mkdtemp(prefix="fedjax8-") if folder is None else folder)
        if not self._lasting:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        try:
            if not self._folder.is_dir() or not any(self._folder.iterdir()):
                _make_folder(self._folder, header, num_clients * (1 + self._row_bytes))
            _check_header(self._folder, header)
            self._file = os.open(self._folder / _ROWS, os.O_RDWR)
        except OSError as error:
            raise self._failure(error) from error
        weakref.finalize(self, os.close, self._file)
        self._go_on_with_newest_log()

    def read(self, ids: np.ndarray) -> PyTree:
        """States of clients `ids` `[n]`, NumPy leaves `[n, ...]`; the initial state outside 0 .. K - 1."""
        ids = np.asarray(ids, np.int64)
        rows = np.tile(self._initial, (len(ids), 1))
        for place in np.flatnonzero(self._has_state(ids)):
            self._read_at(int(ids[place]), 1, rows[place])
        return self._to_tree(rows)

    def write(self, ids: np.ndarray, rows: PyTree, donate: bool = True) -> "DiskStates":
        """This store, in which clients `ids` `[n]`, all different, now have the states `rows`, leaves `[n, ...]`.

        It is changed in place, whatever `donate` says.

        Ids outside 0 .. K - 1 are padding and ignored. What is overwritten for the first time since the last mark is in
        the log on disk before anything changes. UserError where the disk is full or cannot be written.
        """
        ids = np.asarray(ids, np.int64)
        real = np.flatnonzero((ids >= 0) & (ids < self._num_clients))
        new = self._to_rows(rows, real)
        try:
            if self._lasting:
                self._save_old(ids[real])
            for client, row in zip(ids[real].tolist(), new, strict=True):
                self._write_at(client, row)
        except OSError as error:
            raise self._failure(error) from error
        return self

    def arrays(self) -> PyTree:
        """`()`: checkpoints hold nothing of this store."""
        return ()

    def with_arrays(self, arrays: PyTree) -> "DiskStates":
        """The same store; `rewind` does the work."""
        return self

    def mark(self, round_number: int) -> None:
        """Makes the store return to how it is now, by `rewind(round_number)`; call it before the checkpoint is written.

        Marks older than the `KEEP_MARKS` newest are given up. ValueError for a round before the newest mark, or for
        that mark's own round if there were writes since.
        """
        if not self._lasting:
            return
        newest = self.marks()[-1]
        if round_number == newest and not self._log_end:
            return
        if round_number <= newest:
            raise ValueError(f"round {round_number} cannot be marked after round {newest}; rewind first")
        try:
            os.fsync(self._file)  # first: the new log knows nothing of what came before it
            _make_empty(self._log(round_number))
            _sync_folder(self._folder)
            for old in self.marks()[:-KEEP_MARKS]:
                self._log(old).unlink()
        except OSError as error:
            raise self._failure(error) from error
        self._go_on_with_newest_log()

    def rewind(self, round_number: int) -> None:
        """Takes the store back to its mark of `round_number`.

        May be interrupted and done again. UserError if there is no such mark.
        """
        if not self._lasting:
            raise UserError("client states in a temporary directory cannot be taken back; give them a folder")
        marks = self.marks()
        if round_number not in marks:
            raise UserError(
                f"{self._folder}: the client states cannot be taken back to round {round_number}, only to rounds "
                f"{', '.join(map(str, marks))}; go on from a checkpoint of one of these, or remove the whole run to "
                "start over"
            )
        undone = [mark for mark in reversed(marks) if mark >= round_number]
        try:
            for mark in undone:
                self._undo(self._log(mark))
            os.fsync(self._file)
            for mark in undone[:-1]:  # newest first: what is left after an interruption can still be undone
                self._log(mark).unlink()
                _sync_folder(self._folder)
            _make_empty(self._log(round_number))
        except OSError as error:
            raise self._failure(error) from error
        self._go_on_with_newest_log()

    def marks(self) -> list[int]:
        """Rounds that the store can be taken back to, in ascending order."""
        names = (path.name.removeprefix(_UNDO) for path in self._folder.glob(f"{_UNDO}*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _log(self, round_number: int) -> Path:
        return self._folder / f"{_UNDO}{round_number}"

    def _go_on_with_newest_log(self) -> None:
        """Which rows the newest log has, and where it ends."""
        self._saved = np.zeros(self._num_clients, bool)  # the system gives memory only to the pages that are touched
        self._log_end = 0
        if self._lasting:
            for block in read_blocks(self._log(self.marks()[-1]), self._row_bytes):
                self._saved[block.empty] = self._saved[block.filled] = True
                self._log_end = block.end

    def _save_old(self, ids: np.ndarray) -> None:
        ids = ids[~self._saved[ids]]
        if not len(ids):
            return
        filled = self._has_state(ids)
        old = np.empty((np.count_nonzero(filled), self._row_bytes), np.uint8)
        for client, row in zip(ids[filled].tolist(), old, strict=True):
            self._read_at(client, 1, row)
        self._log_end = append(self._log(self.marks()[-1]), self._log_end, ids[~filled], ids[filled], old)
        self._saved[ids] = True

    def _undo(self, log: Path) -> None:
        nothing, row = np.zeros(1, np.uint8), np.ones(1 + self._row_bytes, np.uint8)
        for block in read_blocks(log, self._row_bytes):
            for client in block.empty.tolist():
                self._write_at(client, nothing)
            for client, old in zip(block.filled.tolist(), block.rows, strict=True):
                row[1:] = old
                self._write_at(client, row)

    def _has_state(self, ids: np.ndarray) -> np.ndarray:
        """bool [n]; false for padding."""
        flags = np.zeros((len(ids), 1), np.uint8)
        for place in np.flatnonzero((ids >= 0) & (ids < self._num_clients)):
            self._read_at(int(ids[place]), 0, flags[place])
        return flags[:, 0] > 0

    def _read_at(self, client: int, offset: int, into: np.ndarray) -> None:
        start, done = client * (1 + self._row_bytes) + offset, 0
        while done < len(into):
            count = os.preadv(self._file, [into[done : done + _LARGEST_CALL].data], start + done)
            if not count:
                raise UserError(f"{self._folder}: {_ROWS} ends before the row of client {client}; the file is damaged")
            done += count

    def _write_at(self, client: int, row: np.ndarray) -> None:
        start, done = client * (1 + self._row_bytes), 0
        while done < len(row):
            done += os.pwrite(self._file, row[done : done + _LARGEST_CALL].data, start + done)

    def _to_rows(self, states: PyTree, chosen: np.ndarray) -> np.ndarray:
        """[n, 1 + row_bytes] uint8: the chosen states as they lie in the file."""
        rows, start = np.ones((len(chosen), 1 + self._row_bytes), np.uint8), 1
        leaves = self._treedef.flatten_up_to(states)  # type: ignore[attr-defined]  # jaxlib's stubs lack it
        for leaf, like in zip(leaves, jax.tree.leaves(self._like), strict=True):
            leaf = np.asarray(leaf)
            check_rows(leaf, like)
            rows[:, start : start + like.nbytes] = _as_bytes(leaf)[chosen]
            start += like.nbytes
        return rows

    def _to_tree(self, rows: np.ndarray) -> PyTree:
        """uint8 [n, row_bytes] as states, leaves [n, ...]."""
        leaves, start = [], 0
        for like in jax.tree.leaves(self._like):
            part = np.ascontiguousarray(rows[:, start : start + like.nbytes])
            leaves.append(part.reshape(-1).view(like.dtype).reshape(len(rows), *like.shape))
            start += like.nbytes
        return jax.tree.unflatten(self._treedef, leaves)

    def _failure(self, error: OSError) -> UserError:
        return UserError(
            f"{self._folder}: client states cannot be kept there ({error.strerror}); make room or choose another "
            "directory, and go on from the last checkpoint"
        )


def check_rows(rows: np.ndarray, like: np.ndarray) -> None:
    """Raises ValueError unless `rows` `[n, ...]` are states like the one given."""
    if rows.dtype != like.dtype or rows.shape[1:] != like.shape:
        raise ValueError(f"states are {rows.dtype} {rows.shape}, but must be {like.dtype} [n, *{like.shape}]")


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Leaves `[n, ...]` as uint8 `[n, bytes of a row]`."""
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(len(rows), row_bytes)


def _make_folder(folder: Path, header: dict, file_bytes: int) -> None:
    """A store of untouched rows, marked at round 0; it appears complete or not at all."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with (part / _ROWS).open("wb") as file:
        file.truncate(file_bytes)
    _make_empty(part / f"{_UNDO}0")
    with (part / _HEADER).open("w") as file:
        file.write(json.dumps(header, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(part)
    os.replace(part, folder)
    _sync_folder(folder.parent)


def _check_header(folder: Path, header: dict) -> None:
    try:
        found = dict(json.loads((folder / _HEADER).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} does not hold client states of fedjax8; choose another directory") from error
    if found != header:
        name = next(name for name in (*header, *found) if found.get(name) != header.get(name))
        raise UserError(
            f"{folder} holds client states of another run ({name}: {found.get(name)}, needed {header.get(name)}); "
            "choose another directory"
        )


def _make_empty(path: Path) -> None:
    """Makes or empties a file, on disk."""
    with path.open("wb") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
