"""Files of the safetensors format, read and written without its library.

    8 bytes, the length n of the header, little-endian | n bytes of JSON, padded with spaces | the tensors' bytes
    {"__metadata__": {str: str}, "NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...}

Offsets count from the end of the header; together the tensors cover the rest of the file without gaps
(github.com/huggingface/safetensors, "Format"). A file is mapped into memory and read tensor by tensor, or slice by
slice.
"""

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fedjax8.durable import replacing
from fedjax8.given import has_form, parse

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I32": np.dtype("<i4"),
    "U32": np.dtype("<u4"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I64": np.dtype("<i8"),
    "U64": np.dtype("<u8"),
}
"""By the format's names."""
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MOST_HEADER_BYTES = 100_000_000
"""As the format's own library allows."""
METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")
_ENTRY = {"dtype": str, "shape": [int], "data_offsets": [int]}


class Tensor(NamedTuple):
    """A tensor in a file's header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Byte in the file."""


class Header(NamedTuple):
    """Contents of a file, without the values."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """The header of a file, checked; ValueError for one that is damaged, cut short or of another kind, and OSError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(_LENGTH.size)
        length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else 0
        if not 2 <= length <= min(MOST_HEADER_BYTES, size - _LENGTH.size):
            raise ValueError("its header is no safetensors header")
        found = parse(file.read(length).decode("utf-8", "replace"))
    if not isinstance(found, dict):
        raise ValueError("its header is not JSON")
    metadata = found.pop(METADATA, {})
    if not has_form(metadata, {str: str}):
        raise ValueError("its metadata are not texts")
    end = begin = _LENGTH.size + length
    tensors = {}
    for name, entry in sorted(found.items(), key=_offset):
        if not has_form(entry, _ENTRY) or entry["dtype"] not in DTYPES:
            raise ValueError(f"{name[:100]!r} is of no known dtype or form")
        start, stop = (begin + offset for offset in entry["data_offsets"])
        taken = math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
        if min(entry["shape"], default=0) < 0 or start != end or stop != start + taken:
            raise ValueError(f"{name[:100]!r} does not lie where its shape says")
        tensors[name] = Tensor(name, entry["dtype"], tuple(entry["shape"]), start)
        end = stop
    if end != size:
        raise ValueError(f"it has {size} bytes, and its header says {end}")
    return Header(tensors, metadata)


def _offset(item: tuple[str, Any]) -> tuple[int, int]:
    """Where a tensor lies; first for an entry of another form, which is refused."""
    entry = item[1]
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(x) is int for x in offsets)):
        raise ValueError(f"{item[0][:100]!r} is of no known dtype or form")
    return offsets[0], offsets[1]


def read_tensor(path: Path, tensor: Tensor, places: tuple[slice, ...] = ()) -> np.ndarray:
    """The values at `places` of a tensor, copied out of the file; ValueError where the file is shorter by now."""
    dtype = DTYPES[tensor.dtype]
    if not math.prod(tensor.shape):
        return np.zeros(tensor.shape, dtype)[places]
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        whole = np.frombuffer(mapped, dtype, math.prod(tensor.shape), tensor.start).reshape(tensor.shape)
        found = np.array(whole[places], order="C")
        del whole  # or the map could not be closed
        return found


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Writes a file, in the order of the names; it is the old one or the whole new one. OSError where it cannot be."""
    entries: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        dtype = NAMES[array.dtype.newbyteorder("<")]
        entries[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header = header.ljust(-(-len(header) // 8) * 8)  # so that the values are aligned
    with replacing(path) as file:
        file.write(_LENGTH.pack(len(header)) + header)
        for array in tensors.values():
            little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            file.write(little.reshape(-1).view(np.uint8).data if little.size else b"")
