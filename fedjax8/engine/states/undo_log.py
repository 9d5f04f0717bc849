"""Old contents of overwritten rows, by which a file is taken back to a checkpoint.

A log belongs to one moment, a *mark*. It begins with which rows held something then. Before a row is changed for the
first time after the mark, its old bytes are appended and made durable. Undoing the log gives the file as it was at the
mark, whatever of the later changes reached the disk. Little-endian:

    head       8 bytes "fj8undo2" | uint64 end of the last whole block | uint32 checksum of these
    filled     uint64 bytes | uint32 checksum | which rows held something: a bit each, compressed by zlib
    block ...  uint64 rows that were empty | uint64 rows that held something | uint32 checksum of all else in the block
               int64 row numbers, the empty ones first | old bytes of the rows that held something, in that order

One call to `append` makes one block, and then writes the head, on disk before any of its rows may change. Bytes behind
that end are from a process that died while it wrote: none of its rows had changed, and it is ignored. Blocks before it
must be whole; where it is not, the log is damaged and nothing of it is used.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax8.durable import checksum, replace_file

_MAGIC = b"fj8undo2"
_HEAD = struct.Struct("<8sQI")
_FILLED = struct.Struct("<QI")
_BLOCK = struct.Struct("<QQI")
_COUNTS = struct.Struct("<QQ")


class Damaged(Exception):
    """A log is missing, was cut short, or holds something else than was written."""


class UndoBlock(NamedTuple):
    """Rows saved by one `append`."""

    empty: np.ndarray  # int64 [n] numbers of rows that held nothing
    filled: np.ndarray  # int64 [m] numbers of rows that held something
    rows: np.ndarray  # uint8 [m, row_bytes]: their old contents


class Log(NamedTuple):
    """A log that is whole."""

    filled: np.ndarray  # bool [K]: which rows held something at the mark
    blocks: list[UndoBlock]  # their rows are mapped, not read
    end: int  # bytes of the file up to the end of the last block


def create(path: Path, filled: np.ndarray) -> int:
    """Makes an empty log, in place of any that is there, on disk; returns its end. `filled` bool `[K]`. OSError."""
    bits = zlib.compress(np.packbits(filled).tobytes(), 1)
    found = checksum(np.frombuffer(bits, np.uint8))
    end = _HEAD.size + _FILLED.size + len(bits)
    replace_file(path, _head(end) + _FILLED.pack(len(bits), found) + bits)
    return end


def append(path: Path, end: int, empty: np.ndarray, filled: np.ndarray, rows: np.ndarray) -> int:
    """End of a new block at byte `end`, over the remains of an interrupted call; returned once it is on disk.

    Arguments as the fields of `UndoBlock`. OSError where that cannot be; the log is then as it was.
    """
    counts = _COUNTS.pack(len(empty), len(filled))
    parts = [np.ascontiguousarray(part) for part in (empty.astype("<i8"), filled.astype("<i8"), rows)]
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(counts + struct.pack("<I", _sum_of(counts, parts)))
        for part in parts:
            file.write(part.data.cast("B") if part.size else b"")
        file.flush()
        os.fsync(file.fileno())
        after = file.tell()
        file.seek(0)
        file.write(_head(after))
        file.flush()
        os.fsync(file.fileno())
        return after


def read_log(path: Path, num_rows: int, row_bytes: int) -> Log:
    """A log of `num_rows` rows. `Damaged` names the problem of one that cannot be trusted."""
    try:
        content = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except FileNotFoundError:
        raise Damaged("it is missing") from None
    except OSError as error:
        raise Damaged(error.strerror) from error
    head = content[: _HEAD.size].tobytes()
    if len(head) < _HEAD.size or head[:8] != _MAGIC or head != _head(_HEAD.unpack(head)[1]):
        raise Damaged("its head is damaged")
    end, at = _HEAD.unpack(head)[1], _HEAD.size + _FILLED.size
    if end > len(content) or end < at:
        raise Damaged(f"it has {len(content)} bytes and should have {end}")
    length, expected = _FILLED.unpack(content[_HEAD.size : at].tobytes())
    bits = content[at : at + length]
    if length > end - at or checksum(bits) != expected:
        raise Damaged("its list of clients is damaged")
    room = -(-num_rows // 8)
    try:
        packed = zlib.decompressobj().decompress(bits.tobytes(), room + 1)
    except zlib.error as error:
        raise Damaged("its list of clients is damaged") from error
    if len(packed) != room:
        raise Damaged(f"its list is not of {num_rows} clients")
    filled = np.unpackbits(np.frombuffer(packed, np.uint8), count=num_rows).astype(bool)
    return Log(filled, list(_blocks(content[:end], at + length, row_bytes)), end)


def _blocks(content: np.ndarray, at: int, row_bytes: int) -> Iterator[UndoBlock]:
    number = 0
    while at < len(content):
        number += 1
        head = content[at : at + _BLOCK.size].tobytes()
        if len(head) < _BLOCK.size:
            raise Damaged(f"its block {number} is damaged")
        num_empty, num_filled, expected = _BLOCK.unpack(head)
        numbers = at + _BLOCK.size
        rows = numbers + 8 * (num_empty + num_filled)
        at = rows + num_filled * row_bytes
        counts = _COUNTS.pack(num_empty, num_filled)
        if at > len(content):
            raise Damaged(f"its block {number} is damaged")
        ids = np.frombuffer(content[numbers:rows].tobytes(), "<i8")
        old = content[rows:at].reshape(num_filled, row_bytes)
        if _sum_of(counts, [ids[:num_empty], ids[num_empty:], old]) != expected:
            raise Damaged(f"its block {number} is damaged")
        yield UndoBlock(ids[:num_empty], ids[num_empty:], old)


def _sum_of(counts: bytes, parts: list[np.ndarray]) -> int:
    found = zlib.crc32(counts)
    for part in parts:
        found = checksum(np.ascontiguousarray(part).reshape(-1).view(np.uint8), found)
    return found


def _head(end: int) -> bytes:
    words = struct.pack("<8sQ", _MAGIC, end)
    return words + struct.pack("<I", zlib.crc32(words))
