"""Digests of data sets, at little cost: enough to notice that files were replaced before a run is resumed.

Arrays up to `WHOLE` bytes are read in full. Of larger ones, and of folders that are mapped and not read, evenly
spaced rows count, with the shape and dtype: another set, another order or another split is noticed, one mended row is
not.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax8.data.federated import Dataset, FederatedData

WHOLE = 1 << 25
"""32 MiB: some hundredths of a second."""
SAMPLED = 512
"""Rows of an array that is larger."""


def digest(dataset: Dataset, clients: FederatedData) -> dict[str, str]:
    """`{"train.x": "uint8 [60000, 28, 28] 1f0c...", ..., "clients.sizes": ...}`: training and test columns, and the
    owners of rows. Equal data give equal text on every machine."""
    parts: dict[str, Mapping[str, Any]] = {
        "train": clients.columns,
        "test": dataset.test,
        "clients": {"order": clients.order, "starts": clients.starts, "sizes": clients.sizes},
    }
    return {
        f"{part}.{name}": array_digest(array)
        for part, arrays in parts.items()
        for name, array in arrays.items()
        if array is not None
    }


def array_digest(array: np.ndarray) -> str:
    """dtype, shape and 64 bits of a hash of an array `[N, ...]`, or of `SAMPLED` of its rows where it is large."""
    rows = array
    if array.nbytes > WHOLE:
        rows = array[np.linspace(0, len(array) - 1, SAMPLED).astype(np.int64)]
    rows = np.ascontiguousarray(rows)
    rows = rows.astype(rows.dtype.newbyteorder("<"), copy=False)
    found = hashlib.blake2b(rows.reshape(-1).view(np.uint8).data if rows.size else b"", digest_size=8).hexdigest()
    return f"{array.dtype.name} {list(array.shape)} {found}"


def without_floats(parts: Mapping[str, str]) -> dict[str, str]:
    """A digest in which columns of floats are dtype and shape alone, and programs have no hash. Features that are
    computed as data are read, such as spectra, have other last bits on another processor or by another version of a
    library, and programs are traced otherwise."""
    moves = ("float", "program")
    return {name: text.rpartition(" ")[0] if text.startswith(moves) else text for name, text in parts.items()}
