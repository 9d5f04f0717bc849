"""Readers of pickles that run nothing: of the Python version of CIFAR, dicts of an array and a list; of plain values.

A pickle is a program: it names functions, and unpickling calls them. Here the names that NumPy's arrays are pickled by
stand for two small classes of this file, which take a uint8 array's bytes and nothing else; any other name is refused.
The unpickler is the one written in Python, whose memory is bounded by what the file itself holds.
"""

import io
import math
import pickle
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.readers.arrays import reading

MOST_BYTES = 1 << 28
"""Of a file; the largest has 155 MB."""
_PIXELS = 3 * 32 * 32


class _Array:
    """Stand-in of `numpy.ndarray` while its state is read."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran_order, data = state
        if isinstance(data, str):  # written by Python 2
            data = data.encode("latin-1")
        if not isinstance(kind, _Kind) or fortran_order or not isinstance(data, bytes):
            raise pickle.UnpicklingError("its array is not of bytes in rows")
        if not all(isinstance(n, int) and n >= 0 for n in shape) or math.prod(shape) != len(data):
            raise pickle.UnpicklingError(f"its array of shape {shape} holds {len(data)} bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape)


class _Kind:
    """Stand-in of `numpy.dtype`, of one byte without a sign."""

    def __init__(self, code: Any = None, *_: Any):
        if code not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"its array is of {code!r:.20}, not of uint8")

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, of which a single byte has none."""


def _array(*_: Any) -> _Array:
    """Stand-in of `numpy._core.multiarray._reconstruct`."""
    return _Array()


def _from_bytes(data: Any, kind: Any, shape: Any, order: Any) -> _Array:
    """Stand-in of `numpy._core.numeric._frombuffer`, by which protocol 5 writes arrays."""
    made = _Array()
    made.__setstate__((1, shape, kind, order != "C", bytes(data) if isinstance(data, bytearray) else data))
    return made


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Stand-in of `_codecs.encode`, by which Python 3 writes bytes in an old protocol."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("its bytes are in an encoding other than latin1")
    return text.encode("latin-1")


_STANDS_FOR = {
    **{(f"{home}.multiarray", "_reconstruct"): _array for home in ("numpy.core", "numpy._core")},
    **{(f"{home}.numeric", "_frombuffer"): _from_bytes for home in ("numpy.core", "numpy._core")},
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Kind,
    ("_codecs", "encode"): _encode,
}


class _Reader(pickle._Unpickler):  # the C one makes room for whatever index a file names
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of a name; UnpicklingError for any other."""
        if (module, name) not in _STANDS_FOR:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not read")
        return _STANDS_FOR[module, name]


def read_cifar_pickles(folder: Path, names: Collection[str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """`(x [N, 32, 32, 3] uint8, y [N] int64)` of the named files, one after the other.

    Args:
        folder: holds them.
        names: of the files.
        label: key of the labels: `labels`, or `fine_labels`.
    """
    images, labels = [], []
    for path in (folder / name for name in names):
        with reading(path, "not a file of CIFAR's Python version"):
            if path.stat().st_size > MOST_BYTES:
                raise UserError(f"{path}: more than {MOST_BYTES} bytes; fetch it again")
            found = _Reader(io.BytesIO(path.read_bytes()), encoding="latin-1").load()
            if not isinstance(found, dict):
                raise UserError(f"{path}: it holds no dict")
            found = {k.decode("latin-1") if isinstance(k, bytes) else k: v for k, v in found.items()}
            x, y = getattr(found.get("data"), "value", None), found.get(label)
            if x is None or x.ndim != 2 or x.shape[1] != _PIXELS or not len(x):
                raise UserError(f"{path}: 'data' is no uint8 array [N, {_PIXELS}]")
            whole = isinstance(y, list) and len(y) == len(x) and all(type(n) is int and 0 <= n < 256 for n in y)
            if not whole:
                raise UserError(f"{path}: {label!r} is not a list of {len(x)} classes below 256")
        images.append(x.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(np.array(y, np.int64))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


class _PlainReader(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """UnpicklingError: plain values name nothing."""
        raise pickle.UnpicklingError(f"it names {module}.{name}, and only dicts, lists, numbers and texts are read")


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle of dicts, lists, tuples, numbers, texts, booleans and None, without running anything.

    Raises:
        UserError: no such file, more than `MOST_BYTES`, damaged, or with a value of another type.
    """
    with reading(path, "not a pickle of plain values"):
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path}: more than {MOST_BYTES} bytes")
        return _PlainReader(io.BytesIO(path.read_bytes()), encoding="latin-1").load()
