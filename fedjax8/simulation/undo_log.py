"""What the rows of a file were before they were overwritten, so that the file can be taken back to a checkpoint.

A log belongs to one moment, a *mark*. Before a row is changed for the first time after the mark, its old bytes are
appended and made durable. Undoing the log gives the file as it was at the mark, whatever of the later changes reached
the disk. One call to `append` makes one block, little-endian:

    uint64 rows that were empty | uint64 rows that held something | uint32 crc32 of all else in the block
    int64 row numbers, the empty ones first | old bytes of the rows that held something, in that order

A block that is cut short or fails its checksum is the last one, from a process that died while writing it; none of its
rows had been changed by then, and it is ignored.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

_HEAD = struct.Struct("<QQI")
_COUNTS = struct.Struct("<QQ")


class Block(NamedTuple):
    """Rows saved by one `append`."""

    empty: np.ndarray  # int64 [n] numbers of rows that held nothing
    filled: np.ndarray  # int64 [m] numbers of rows that held something
    rows: np.ndarray  # uint8 [m, row_bytes]: what they held
    end: int  # bytes of the log up to the end of this block


def append(path: Path, end: int, empty: np.ndarray, filled: np.ndarray, rows: np.ndarray) -> int:
    """Adds a block at byte `end`, over whatever an interrupted call left there; returns its end once it is on disk.

    Arguments as the fields of `Block`. The file must exist.
    """
    counts = _COUNTS.pack(len(empty), len(filled))
    parts = [np.ascontiguousarray(part) for part in (empty.astype("<i8"), filled.astype("<i8"), rows)]
    checksum = zlib.crc32(counts)
    for part in parts:
        checksum = zlib.crc32(part.data.cast("B") if part.size else b"", checksum)
    with path.open("r+b") as file:
        file.truncate(end)
        file.seek(end)
        file.write(counts + struct.pack("<I", checksum))
        for part in parts:
            file.write(part.data.cast("B") if part.size else b"")
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def read_blocks(path: Path, row_bytes: int) -> Iterator[Block]:
    """The whole blocks of a log, mapped rather than read."""
    if path.stat().st_size == 0:
        return
    content, end = np.memmap(path, np.uint8, "r"), 0
    while len(content) - end >= _HEAD.size:
        num_empty, num_filled, checksum = _HEAD.unpack(content[end : end + _HEAD.size].tobytes())
        numbers = end + _HEAD.size
        rows = numbers + 8 * (num_empty + num_filled)
        after = rows + num_filled * row_bytes
        if after > len(content):
            return
        counts = _COUNTS.pack(num_empty, num_filled)
        if zlib.crc32(content[numbers:after].data, zlib.crc32(counts)) != checksum:
            return
        ids = np.frombuffer(content[numbers:rows].tobytes(), "<i8")
        old = content[rows:after].reshape(num_filled, row_bytes)
        yield Block(ids[:num_empty], ids[num_empty:], old, after)
        end = after
