"""Rows and labels, checked where they enter: on the host, by passes over whole columns.

Every message says what was given, what is allowed and what to try. Where rows lie in memory they are checked once,
before they are used; on disk, rows are checked as they are read, and starts and sizes, by which they are found, from
end to end.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax8.errors import UserError

NO_TARGET = -1
"""The label of a position in a sequence at which there is nothing to predict, such as padding."""
_INT32 = np.iinfo(np.int32)
_VALUES_AT_ONCE = 1 << 20
_FEWEST = 0.1
"""Share of the classes up to the largest label that must occur, unless the number of classes is given."""
_NATIVE = "column.astype(column.dtype.newbyteorder('='))"


def check_columns(columns: Mapping[str, np.ndarray], where: str) -> None:
    """Raises UserError unless all columns are NumPy arrays of numbers that a device can hold, with an axis of rows."""
    if not isinstance(columns, Mapping):
        raise UserError(
            f"{where}: columns are {kind_of(columns)}; give a mapping of names to arrays, such as {{'x': x, 'y': y}}"
        )
    for name, column in columns.items():
        if not isinstance(column, np.ndarray):
            raise UserError(
                f"{where}: column {name!r} is {kind_of(column)}; it must be a NumPy array [N, ...]: try "
                f"np.asarray({name})"
            )
        what = f"{where}: column {name!r} is {column.dtype} {column.shape}"
        if column.dtype.kind == "O":
            raise UserError(f"{what}, Python objects; make rows of one length and one number type, such as float32")
        if column.dtype.kind not in "biuf":
            raise UserError(f"{what}; it must hold numbers: uint8, float32 or int32")
        if not column.dtype.isnative:
            raise UserError(f"{what}, in the byte order of another machine; try {_NATIVE}")
        if column.ndim == 0:
            raise UserError(f"{what}, a single number; it must be [N, ...], a row for each example")


def check_representable(columns: Mapping[str, np.ndarray], where: str) -> None:
    """Raises UserError where 32 bits, in which devices compute, cannot hold the numbers of a 64-bit column in
    memory."""
    for name, column in columns.items():
        if column.dtype.kind in "iu" and column.dtype.itemsize >= 4 and column.dtype != np.int32:
            check_int32(column, f"{where}: column {name!r}")
        elif column.dtype == np.float64:
            low, high = extremes(column)
            if max(-low, high) > float(np.finfo(np.float32).max) and np.isfinite((low, high)).all():
                raise UserError(
                    f"{where}: column {name!r} runs from {low:g} to {high:g}, beyond float32; scale it, or "
                    "take logarithms"
                )


def check_int32(values: np.ndarray, where: str) -> None:
    """Raises UserError where integers are beyond 32 bits, the widest that devices hold."""
    low, high = extremes(values)
    if values.size and (low < _INT32.min or high > _INT32.max):
        raise UserError(f"{where} runs from {low} to {high}, beyond 32-bit integers; number the values anew from 0")


def check_finite(columns: Mapping[str, np.ndarray], where: str) -> None:
    """Raises UserError naming the first row with NaN or an infinity in a floating column."""
    for name, column in columns.items():
        if column.dtype.kind != "f" or finite(column):
            continue
        first = next(row for row in range(len(column)) if not np.isfinite(column[row]).all())
        raise UserError(
            f"{where}: row {first} of {name!r} holds NaN or an infinity; leave such rows out, or fill them in "
            f"(np.nan_to_num({name}))"
        )


def finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite; nearly always by one sum, without an array of its own."""
    flat = values.reshape(-1) if values.flags.c_contiguous else values
    step = max(1, _VALUES_AT_ONCE // max(1, int(np.prod(flat.shape[1:], dtype=np.int64))))
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, len(flat), step):
            block = flat[first : first + step]
            if (
                not np.isfinite(np.sum(block)) and not np.isfinite(block).all()
            ):  # a sum may overflow where no value does
                return False
    return True


def check_classes(labels: np.ndarray, num_classes: int, where: str, lowest: int = 0) -> None:
    """Raises UserError unless labels are integers from `lowest` (-1 where positions may have none) to below
    `num_classes`."""
    check_label_kind(labels, where)
    low, high = extremes(labels)
    if labels.size and (low < lowest or high >= num_classes):
        also = f" and {lowest} where there is no target" if lowest < 0 else ""
        raise UserError(
            f"{where} labels run from {low} to {high}; {num_classes} classes allow 0 to {num_classes - 1}{also}; "
            "number them anew (np.unique(labels, return_inverse=True)[1]), or take more classes"
        )


def check_marks(targets: np.ndarray, where: str) -> None:
    """Raises UserError unless targets `[N, L]` are all 0 or 1."""
    low, high = extremes(targets)
    if targets.size and (low < 0 or high > 1):
        raise UserError(
            f"{where}: targets run from {low} to {high}; of several labels a row each must be 0 or 1; where a row has "
            "one class, give its number, [N]"
        )


def check_label_shape(x: np.ndarray, labels: np.ndarray, num_classes: int | None, where: str) -> None:
    """UserError unless there is an int32 label for each row, or for each position of each row; without classes, unless
    there are numbers, or labels that a row has or has not."""
    if num_classes is None:
        if (labels.dtype.name, labels.ndim) not in (("float32", 1), ("float32", 2), ("uint8", 2)):
            raise UserError(
                f"{where} targets are {labels.dtype} {labels.shape}; without num_classes they must be numbers, float32 "
                "[N] or [N, K], or a 0 or 1 for each label, uint8 [N, L]"
            )
        if 0 in labels.shape[1:]:
            raise UserError(f"{where} targets have shape {labels.shape}; each row needs at least one")
        return
    if labels.dtype != np.int32 or labels.shape not in (x.shape[:1], x.shape[:2]):
        raise UserError(
            f"{where} labels are {labels.dtype} {labels.shape}; they must be int32 [{len(x)}], or one for each "
            f"position of a sequence{label_advice(labels)}"
        )


def check_labels(labels: np.ndarray, num_classes: int | None, where: str) -> None:
    """UserError unless each row has a valid label."""
    if num_classes is None:
        if labels.dtype == np.uint8:
            check_marks(labels, where)
        return
    check_classes(labels, num_classes, where, 0 if labels.ndim == 1 else NO_TARGET)
    if labels.ndim > 1 and not (labels >= 0).any(axis=1).all():
        row = int((labels >= 0).any(axis=1).argmin())
        raise UserError(f"{where} row {row} has no target at any position; leave such rows out")


def check_label_kind(labels: np.ndarray, where: str) -> None:
    """Raises UserError unless labels are integers."""
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{where} labels are {labels.dtype} {labels.shape}; they must be integers{label_advice(labels)}"
        )


def label_advice(labels: np.ndarray) -> str:
    """Advice on labels of another kind or shape, beginning with `; `, or empty."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "; try labels[:, 0]"
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        return (
            "; where a row marks its class, try labels.argmax(axis=1); for several labels a row take the task "
            "multilabel"
        )
    if labels.dtype.kind in "bf":
        return "; try labels.astype(np.int32), or for measured numbers the task regression"
    if labels.dtype.kind in "OUS":
        return "; try np.unique(labels, return_inverse=True)[1]"
    return ""


def count_classes(labels: Mapping[str, np.ndarray], where: str) -> int:
    """Largest label + 1 over all parts. Classes that never occur are reported, and refused where they are nine of ten.

    Args:
        labels: part -> integers, perhaps with -1 for none; not empty.
        where: the file or folder.
    """
    most = 1 + max(int(extremes(part)[1]) for part in labels.values() if part.size)
    if most < 1:
        return 1  # nothing but -1, which `Dataset.validate` refuses
    number = _count_different(list(labels.values()), most)
    if number == most:
        return most
    gaps = (
        f"{where}: labels run up to {most - 1}, but only {number} of these {most} classes occur; number them anew "
        "(classes, labels = np.unique(labels, return_inverse=True), of train and test together), or give num_classes"
    )
    if number < _FEWEST * most:
        raise UserError(gaps)
    logging.getLogger(__name__).warning("%s; the others get outputs that are never right", gaps)
    return most


def _count_different(labels: Sequence[np.ndarray], most: int) -> int:
    """Number of the labels 0 .. most - 1 that occur."""
    if most > _VALUES_AT_ONCE:
        return len(set().union(*(np.unique(part[part >= 0]).tolist() for part in labels)))
    present = np.zeros(most, bool)
    for part in labels:
        for first in range(0, len(part), _VALUES_AT_ONCE):
            block = part[first : first + _VALUES_AT_ONCE]
            present[block[block >= 0]] = True
    return int(np.count_nonzero(present))


def extremes(values: np.ndarray) -> tuple[Any, Any]:
    """Smallest and largest value, (0, -1) of none; of columns on disk too, a block at a time."""
    if not values.size:
        return 0, -1
    step = max(1, _VALUES_AT_ONCE * len(values) // values.size)
    blocks = (values[first : first + step] for first in range(0, len(values), step))
    lows, highs = zip(*((block.min(), block.max()) for block in blocks), strict=True)
    return min(lows).item(), max(highs).item()


def common_length(columns: Mapping[str, np.ndarray], where: str, numbered: bool = True) -> int:
    """The length of all columns; `numbered` rows must have int32 numbers."""
    if not columns:
        raise UserError(f"{where}: no columns given; at least one is needed")
    lengths: dict[str, Any] = {name: len(column) if np.ndim(column) else None for name, column in columns.items()}
    if None in lengths.values() or len(set(lengths.values())) != 1:
        raise UserError(f"{where}: columns have lengths {lengths}; they must be arrays of equal length")
    length = next(iter(lengths.values()))
    if numbered and length > np.iinfo(np.int32).max:
        raise UserError(f"{where}: {length} rows; at most {np.iinfo(np.int32).max} are supported in an order")
    return length


def check_windows(starts: np.ndarray, sizes: np.ndarray, positions: int, what: str) -> None:
    """Raises UserError unless `starts` int64 and `sizes` int32 of some clients lie within 0 .. `positions`."""
    # Not starts + sizes, which may overflow.
    if len(starts) and (sizes.min() < 0 or starts.min() < 0 or (starts > positions - sizes.astype(np.int64)).any()):
        raise UserError(
            f"a client's window leaves the {positions} {what}; starts and sizes must not be negative, nor start + size "
            "exceed it"
        )


def kind_of(value: Any) -> str:
    """`a list of 3`, `a jax Array`: the kind of a value, in a word or two."""
    kind = type(value)
    home = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]} "
    length = f" of {len(value)}" if isinstance(value, list | tuple | dict) else ""
    return f"{'an' if (home + kind.__name__)[0] in 'aeiou' else 'a'} {home}{kind.__name__}{length}"
