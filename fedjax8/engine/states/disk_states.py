"""The states of clients on disk, for stores too large for the device or for copying into every checkpoint."""

import json
import math
import os
import shutil
import struct
import tempfile
import weakref
import zlib
from pathlib import Path

import jax
import numpy as np

from fedjax8 import trees
from fedjax8.durable import PART, checksum, make_folder, remove, replace_file, sync_folder, sync_tree
from fedjax8.engine.states.undo_log import Damaged, Log, append, create, read_log
from fedjax8.errors import UserError
from fedjax8.types import PyTree

_FORMAT = 2  # of the folder; raise it when its files change their meaning
_HEADER, _MARKS, _ROWS, _UNDO = "header.json", "marks.json", "rows.bin", "undo-"
_LARGEST_CALL = 1 << 30  # bytes; the system moves at most 2 GiB in one call
_HEAD = struct.Struct(
    "<II"
)  # before each row: 1 if the client has a state, checksum of the row and the client's number


class DiskStates:
    """States in a file of K rows: 8 bytes that say whether the client has a state, with a checksum, then its leaves.

    The file starts as one large hole. A row of a client that took no part yet is never written, takes no space on disk
    and reads as the initial state. Rows are read and written by position, not through a memory map, in which a full
    disk would kill the process without a word.

    In a folder of its own, undo logs make the store return to each of its marks, also after the process or the machine
    died. A new store is marked at round 0, and a mark stays until `release` gives it up. Between marks the newest log
    grows by the old states of clients that took part. A temporary store has no log: nothing can go on from it.

    Everything read is checked: rows against their checksums and against the list of clients that have a state, logs as
    a whole, and the marks in `marks.json` against the logs that are there. Damage is an error.
    """

    def __init__(self, initial: PyTree, num_clients: int, folder: Path | None = None):
        self._like = jax.tree.map(np.asarray, initial)
        leaves, self._treedef = jax.tree.flatten(self._like)
        self._initial = np.concatenate([_as_bytes(leaf[None])[0] for leaf in leaves])
        self._num_clients, self._row_bytes = num_clients, len(self._initial)
        self._lasting = folder is not None
        self._failed: UserError | None = None
        header = {
            "format": _FORMAT,
            "num_clients": num_clients,
            "leaves": {name: f"{x.dtype.name} {list(x.shape)}" for name, x in trees.named_leaves(self._like).items()},
        }
        self._folder = Path(tempfile.mkdtemp(prefix="fedjax8-") if folder is None else folder)
        if not self._lasting:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        file_bytes = num_clients * (_HEAD.size + self._row_bytes)
        try:
            if not self._folder.is_dir() or not any(self._folder.iterdir()):
                _make_store(self._folder, header, num_clients, file_bytes)
            _check_header(self._folder, header)
            self._file = os.open(self._folder / _ROWS, os.O_RDWR)
        except OSError as error:
            raise self._failure(error) from error
        weakref.finalize(self, os.close, self._file)
        if os.fstat(self._file).st_size != file_bytes:
            raise self._damage(f"{_ROWS} has {os.fstat(self._file).st_size} bytes and should have {file_bytes}")
        self._marks = self._read_marks() if self._lasting else []
        self._remove_leftovers()
        self._go_on()

    def read(self, ids: np.ndarray) -> PyTree:
        """States of clients `ids` `[n]`, NumPy leaves `[n, ...]`; the initial state outside 0 .. K - 1.

        UserError for a state that is damaged.
        """
        ids = np.asarray(ids, np.int64)
        rows = np.tile(self._initial, (len(ids), 1))
        known = (ids >= 0) & (ids < self._num_clients)
        known[known] = self._filled[ids[known]]
        for place in np.flatnonzero(known):
            self._read_row(int(ids[place]), rows[place])
        return self._to_tree(rows)

    def write(self, ids: np.ndarray, rows: PyTree, donate: bool = True) -> "DiskStates":
        """This store, in which clients `ids` `[n]`, all different, now have the states `rows`, leaves `[n, ...]`.

        It is changed in place, whatever `donate` says.

        Ids outside 0 .. K - 1 are padding and ignored. Rows overwritten for the first time since the last mark are in
        the log on disk before anything changes. UserError where the disk is full or cannot be written; the store then
        takes no more writes, and is to be opened again and taken back to a mark.
        """
        if self._failed:
            raise self._failed
        ids = np.asarray(ids, np.int64)
        real = np.flatnonzero((ids >= 0) & (ids < self._num_clients))
        new = self._to_rows(rows, real)
        try:
            if self._lasting:
                self._save_old(ids[real])
            for client, row in zip(ids[real].tolist(), new, strict=True):
                self._write_row(client, row)
        except OSError as error:
            self._failed = self._failure(error)
            raise self._failed from error
        self._filled[ids[real]] = True
        return self

    def arrays(self) -> PyTree:
        """`()`: checkpoints hold nothing of this store."""
        return ()

    def with_arrays(self, arrays: PyTree) -> "DiskStates":
        """The same store; `rewind` does the work."""
        return self

    def mark(self, round_number: int) -> None:
        """Makes the store return to how it is now, by `rewind(round_number)`; call it before the checkpoint is written.

        ValueError for a round before the newest mark, or for that mark's own round if there were writes since.
        """
        if not self._lasting:
            return
        if self._failed:
            raise self._failed
        newest = self._marks[-1]
        if round_number == newest and not self._changed:
            return
        if round_number <= newest:
            raise ValueError(f"round {round_number} cannot be marked after round {newest}; rewind first")
        try:
            os.fsync(self._file)  # first: the new log knows nothing of earlier writes
            create(self._log(round_number), self._filled)
            self._set_marks([*self._marks, round_number])
        except OSError as error:
            raise self._failure(error) from error
        self._go_on()

    def release(self, oldest: int) -> None:
        """Gives up the marks before round `oldest`, that of the oldest checkpoint that is kept. Where a disk is too
        full even for that they stay until the next time."""
        old = [mark for mark in self._marks[:-1] if mark < oldest]
        if not old:
            return
        try:
            self._set_marks(self._marks[len(old) :])
        except OSError:
            return
        self._remove_leftovers()

    def rewind(self, round_number: int) -> None:
        """Takes the store back to its mark of `round_number`.

        May be interrupted and done again. UserError if there is no such mark, or if a log that it needs is damaged.
        """
        if not self._lasting:
            raise UserError("client states in a temporary directory cannot be taken back; give them a folder")
        logs, problem = self._logs_back_to(round_number)
        if problem:
            reached = ", ".join(str(mark) for mark in self._marks[len(self._marks) - len(logs) :])
            raise UserError(
                f"{self._folder}: the client states cannot be taken back to round {round_number} ({problem}), only to "
                f"rounds {reached}; put back a checkpoint of one of these, or start over in another directory"
            )
        try:
            for log in logs:
                self._undo(log)
            os.fsync(self._file)
            # Until here all logs are as they were, and it can be done again; from here, nothing is left to undo.
            self._set_marks(self._marks[: len(self._marks) - len(logs) + 1])
            create(self._log(round_number), logs[-1].filled)
        except OSError as error:
            raise self._failure(error) from error
        self._remove_leftovers()
        self._go_on()

    def marks(self) -> list[int]:
        """Rounds that the store can be taken back to, in ascending order."""
        return list(self._marks)

    def _logs_back_to(self, round_number: int) -> tuple[list[Log], str]:
        """Logs from the newest to that of a round, and the obstacle that keeps one from going all the way."""
        logs: list[Log] = []
        for mark in reversed(self._marks):
            try:
                logs.append(self._read_log(mark))
            except Damaged as damage:
                return logs, f"{self._log(mark).name}: {damage}"
            if mark == round_number:
                return logs, ""
        return logs, "it was not marked"

    def _log(self, round_number: int) -> Path:
        return self._folder / f"{_UNDO}{round_number}"

    def _read_log(self, round_number: int) -> Log:
        return read_log(self._log(round_number), self._num_clients, self._row_bytes)

    def _read_marks(self) -> list[int]:
        try:
            found = dict(json.loads((self._folder / _MARKS).read_bytes()))
            marks = [int(mark) for mark in found["marks"]]
            if not marks or found["checksum"] != _sum_of(marks):
                raise ValueError
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise self._damage(f"{_MARKS} is missing or damaged") from error
        return marks

    def _set_marks(self, marks: list[int]) -> None:
        _write_marks(self._folder, marks)
        self._marks = marks

    def _remove_leftovers(self) -> None:
        """Removes logs that no mark needs any more and half-written files of an interrupted call."""
        needed = {self._log(mark).name for mark in self._marks}
        for path in self._folder.iterdir():
            if path.name.endswith(PART) or (path.name.startswith(_UNDO) and path.name not in needed):
                remove(path)

    def _go_on(self) -> None:
        """Takes from the newest log which clients have a state, which rows it has, and where it ends."""
        self._saved = np.zeros(self._num_clients, bool)  # the system gives memory only to the pages that are touched
        if not self._lasting:
            self._filled = np.zeros(self._num_clients, bool)
            return
        newest = self._marks[-1]
        try:
            log = self._read_log(newest)
        except Damaged as damage:
            raise self._damage(f"{self._log(newest).name}: {damage}") from damage
        self._filled, self._log_end, self._changed = log.filled, log.end, bool(log.blocks)
        for block in log.blocks:
            self._saved[block.empty] = self._saved[block.filled] = True
            for client in block.empty.tolist():
                head = np.zeros(_HEAD.size, np.uint8)
                self._read_at(client, 0, head)
                self._filled[client] = head.any()

    def _save_old(self, ids: np.ndarray) -> None:
        ids = ids[~self._saved[ids]]
        if not len(ids):
            return
        filled = self._filled[ids]
        old = np.empty((np.count_nonzero(filled), self._row_bytes), np.uint8)
        for client, row in zip(ids[filled].tolist(), old, strict=True):
            self._read_row(client, row)
        self._log_end = append(self._log(self._marks[-1]), self._log_end, ids[~filled], ids[filled], old)
        self._saved[ids] = self._changed = True

    def _undo(self, log: Log) -> None:
        nothing, row = np.zeros(_HEAD.size, np.uint8), np.empty(_HEAD.size + self._row_bytes, np.uint8)
        for block in log.blocks:
            for client in block.empty.tolist():
                self._write_at(client, nothing)
            for client, old in zip(block.filled.tolist(), block.rows, strict=True):
                row[_HEAD.size :] = old
                self._write_row(client, row)

    def _read_row(self, client: int, into: np.ndarray) -> None:
        head = np.empty(_HEAD.size, np.uint8)
        self._read_at(client, 0, head)
        self._read_at(client, _HEAD.size, into)
        if _HEAD.unpack(head.tobytes()) != (1, checksum(into, client)):
            raise self._damage(f"the state of client {client} in {_ROWS} is not what was written")

    def _write_row(self, client: int, row: np.ndarray) -> None:
        """`row` uint8 `[8 + row_bytes]`, whose head is filled in."""
        head = _HEAD.pack(1, checksum(row[_HEAD.size :], client))
        row[: _HEAD.size] = np.frombuffer(head, np.uint8)
        self._write_at(client, row)

    def _read_at(self, client: int, offset: int, into: np.ndarray) -> None:
        start, done = client * (_HEAD.size + self._row_bytes) + offset, 0
        while done < len(into):
            try:
                count = os.preadv(self._file, [into[done : done + _LARGEST_CALL].data], start + done)
            except OSError as error:
                raise self._damage(f"the state of client {client} in {_ROWS}: {error.strerror}") from error
            if not count:
                raise self._damage(f"{_ROWS} ends before the row of client {client}")
            done += count

    def _write_at(self, client: int, row: np.ndarray) -> None:
        start, done = client * (_HEAD.size + self._row_bytes), 0
        while done < len(row):
            done += os.pwrite(self._file, row[done : done + _LARGEST_CALL].data, start + done)

    def _to_rows(self, states: PyTree, chosen: np.ndarray) -> np.ndarray:
        """[n, 8 + row_bytes] uint8: the chosen states as they lie in the file, but for their heads."""
        rows, start = np.empty((len(chosen), _HEAD.size + self._row_bytes), np.uint8), _HEAD.size
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

    def _damage(self, what: str) -> UserError:
        return UserError(
            f"{self._folder}: {what}; clients' states cannot be made up: put back a copy of the whole run's directory, "
            "or start over in another one"
        )


def check_rows(rows: np.ndarray, like: np.ndarray) -> None:
    """Raises ValueError unless `rows` `[n, ...]` are states like the one given."""
    if rows.dtype != like.dtype or rows.shape[1:] != like.shape:
        raise ValueError(f"states are {rows.dtype} {rows.shape}, but must be {like.dtype} [n, *{like.shape}]")


def _as_bytes(rows: np.ndarray) -> np.ndarray:
    """Leaves `[n, ...]` as uint8 `[n, bytes of a row]`."""
    row_bytes = math.prod(rows.shape[1:]) * rows.dtype.itemsize
    return np.ascontiguousarray(rows).reshape(-1).view(np.uint8).reshape(len(rows), row_bytes)


def _make_store(folder: Path, header: dict, num_clients: int, file_bytes: int) -> None:
    """A store of untouched rows, marked at round 0; it appears complete, on disk, or not at all."""
    part = folder.with_name(folder.name + PART)
    remove(part)
    make_folder(folder.parent)
    part.mkdir()
    with (part / _ROWS).open("wb") as file:
        file.truncate(file_bytes)
    create(part / f"{_UNDO}0", np.zeros(num_clients, bool))
    _write_marks(part, [0])
    replace_file(part / _HEADER, (json.dumps(header, indent=2) + "\n").encode())
    sync_tree(part)
    os.replace(part, folder)
    sync_folder(folder.parent)


def _write_marks(folder: Path, marks: list[int]) -> None:
    replace_file(folder / _MARKS, (json.dumps({"marks": marks, "checksum": _sum_of(marks)}) + "\n").encode())


def _sum_of(marks: list[int]) -> int:
    return zlib.crc32(json.dumps(marks).encode())


def _check_header(folder: Path, header: dict) -> None:
    try:
        found = dict(json.loads((folder / _HEADER).read_text()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{folder} does not hold client states of fedjax8; choose another directory") from error
    if found.get("format") != _FORMAT:
        raise UserError(
            f"{folder} holds client states as another version of fedjax8 writes them (format: {found.get('format')}, "
            f"needed {_FORMAT}); go on with that version, or choose another directory"
        )
    if found != header:
        name = next(name for name in (*header, *found) if found.get(name) != header.get(name))
        raise UserError(
            f"{folder} holds client states of another run ({name}: {found.get(name)}, needed {header.get(name)}); "
            "choose another directory"
        )
