"""Names of clients: the ids that the data gives them, kept beside their numbers for people.

Programs know clients by number. A name is text of 1 to 256 bytes in UTF-8 without NUL; names are held as one array of
bytes `[K]`, which a folder on disk maps like any other, and decoded where they are shown.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedjax8.errors import UserError

LONGEST = 256
"""Bytes of a name. The array has room for the longest in every place."""


def packed(names: Iterable[Any], where: str) -> np.ndarray:
    """Bytes `[K]` of the names, in order: texts (also in UTF-8) as they are, other ids as Python writes them.

    UserError for one that is empty, too long or holds NUL, and for two that are written alike.
    """
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in names]
    encoded = [text.encode("utf-8", "replace") for text in texts]
    for text, code in zip(texts, encoded, strict=True):
        if not code:
            raise UserError(f"{where}: a client's id is empty; give every client one, or leave its rows out")
        if len(code) > LONGEST or b"\0" in code:
            raise UserError(
                f"{where}: client id {text[:40]!r} of {len(code)} bytes cannot be a name; use at most {LONGEST} bytes "
                "without NUL"
            )
    if len(set(encoded)) != len(encoded):
        seen: set[bytes] = set()
        twice = next(t for t, c in zip(texts, encoded, strict=True) if c in seen or seen.add(c))  # type: ignore[func-returns-value]
        raise UserError(f"{where}: client id {twice!r} is there twice; ids must differ")
    return np.array(encoded, f"S{max(map(len, encoded), default=1)}")


def unpacked(names: np.ndarray) -> list[str]:
    """The names as texts."""
    return [code.decode("utf-8", "replace") for code in names.tolist()]


def check_names(names: Any, num_clients: int) -> None:
    """UserError unless names are bytes `[num_clients]`; their contents are not read."""
    if not isinstance(names, np.ndarray) or names.dtype.kind != "S" or names.shape != (num_clients,):
        found = f"{names.dtype} {names.shape}" if isinstance(names, np.ndarray) else type(names).__name__
        raise UserError(
            f"names of clients are {found}; they must be bytes [{num_clients}]: try "
            "fedjax8.data.names.packed(list_of_names, 'clients')"
        )


def names_after_split(
    names: np.ndarray | None, natural: np.ndarray | None, owners: np.ndarray, num_clients: int
) -> np.ndarray | None:
    """Names `[num_clients]` of the clients that a split made, where each is one natural client; else None.

    Natural clients without names go by their numbers in the data, unless the split has the same numbers.

    Args:
        names: of the natural clients, if they have some.
        natural: `[N]` the natural client of each row.
        owners: `[N]` its owner after the split; -1 for none.
        num_clients: K of the split.
    """
    if natural is None:
        return None
    used = owners >= 0
    own, before = owners[used], natural[used]
    of = np.full(num_clients, -1, np.int64)
    of[own] = before
    if (of < 0).any() or not np.array_equal(of[own], before) or len(np.unique(of)) < num_clients:
        return None
    if names is None:
        return None if np.array_equal(of, np.arange(num_clients)) else of.astype("S")
    return names[of]


def numbered(ids: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """`(int32 [N], names [K])`: ids of any one kind as numbers in the order of the sorted ids, and their names.

    UserError for NaN and for values that have no order among each other.
    """
    if ids.dtype.kind == "f" and np.isnan(ids).any():
        row = int(np.isnan(ids).argmax())
        raise UserError(f"{where}: row {row} has NaN for a client id; give every row a client, or leave it out")
    try:
        found, numbers = np.unique(ids, return_inverse=True)
    except TypeError as error:
        raise UserError(f"{where}: client ids of several kinds ({error}); make all of them texts") from error
    return numbers.reshape(-1).astype(np.int32), packed(found.tolist(), where)


def shown(names: np.ndarray | None, ids: np.ndarray) -> Sequence[str]:
    """Texts for the clients `ids`: their names, or their numbers where they have none."""
    return [str(i) for i in ids.tolist()] if names is None else unpacked(names[ids])
