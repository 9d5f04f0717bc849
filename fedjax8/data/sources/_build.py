"""From raw arrays to a checked `Dataset`: dtypes, label shape, owners, per-channel mean and deviation."""

from collections.abc import Mapping

import numpy as np

from fedjax8.data.checks import check_int32, count_classes, finite, label_advice
from fedjax8.data.federated import Dataset
from fedjax8.data.names import numbered
from fedjax8.errors import UserError
from fedjax8.types import BINARY, CLASSES, MARKS, VALUES

TARGETS = {"classification": CLASSES, "regression": VALUES, "multilabel": MARKS}
"""Settings `target_kind` of sources: a class each (or at each position); real numbers; 0 or 1 for each of L labels."""
STANDARDIZE = ("auto", "column", "whole", "none")
_ROWS_STREAM = 0x9A127  # keeps the draw of rows apart from other streams made from the same seed
_ROWS_AT_ONCE = 4096
_LEAST_DEVIATION = 1e-30  # far above float32's smallest, so that its reciprocal is finite too
_VALUES_AT_ONCE = 1 << 18  # keeps the float64 copies of a chunk of rows at 2 MB each, in reach of a core's cache


def build_dataset(
    name: str,
    where: str,
    arrays: Mapping[str, np.ndarray],
    *,
    num_classes: int | None = None,
    row_shape: tuple[int, ...] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    standardize: str = "auto",
    measured: bool = False,
    counted: bool = False,
    targets: str = CLASSES,
    class_names: tuple[str, ...] = (),
    client_names: np.ndarray | None = None,
    feature_names: tuple[str, ...] = (),
    learned: tuple[str, ...] = (),
) -> Dataset:
    """A valid `Dataset` from `x_train, y_train, x_test, y_test` and perhaps `client_train, client_test`.

    Every source but `mapped` and `part` makes its data set here.

    Args:
        name: of the data set.
        where: the file or folder, for errors.
        arrays: inputs uint8, floating (becomes float32) or integer (becomes int32); labels [N] or [N, 1]
            integers, or [N, T] for sequences x [N, T, ...]; other targets as `targets` says. Clients are integers, or
            texts, which become their names.
        num_classes: largest label + 1 where None; see `checks.count_classes` for labels with gaps.
        row_shape: what a row must look like; a missing last axis of length 1 is added.
        mean: per channel; measured on the training rows where None, as is `std`.
        std: per channel.
        standardize: how they are measured, one of STANDARDIZE; see `measured_stats`.
        measured: whether mean and std, if given, were measured on these training rows.
        counted: whether `num_classes`, if given, was counted on these rows.
        targets: one of `types.TARGETS`: of VALUES y is float32 [N] or [N, K], of MARKS uint8 [N, L], without classes.
        class_names: of the classes by number, or of the K or L columns of targets.
        client_names: of natural clients by number (`data.names`).
        feature_names: of the columns of x [N, F].
        learned: what the source read off the training rows to make x and y, in words, such as "the vocabulary".
    """
    constants = ["num_classes"] if num_classes is not None and not counted else []
    parts = {}
    for part in ("train", "test"):
        x = _inputs(arrays[f"x_{part}"], f"{where}: x_{part}", row_shape)
        parts[part] = {"x": x, "y": _TARGETS[targets](arrays[f"y_{part}"], f"{where}: y_{part}", x)}
    if targets in (MARKS, VALUES):
        if num_classes is not None:
            raise UserError(f"{where}: num_classes={num_classes} changes nothing, since targets are no class numbers")
    elif num_classes is None:
        if any(part["y"].size for part in parts.values()):
            num_classes = count_classes({part: columns["y"] for part, columns in parts.items()}, where)
        else:
            num_classes = 1
    arrays, client_names = _number_clients(arrays, where, client_names)
    owners, test_owners = (
        _integers(arrays[key], f"{where}: {key}", len(parts[part]["x"])) if key in arrays else None
        for part, key in (("train", "client_train"), ("test", "client_test"))
    )
    if mean is None or std is None:
        mean, std = measured_stats(parts["train"]["x"], where, standardize)
        measured = standardize != "none" and parts["train"]["x"].dtype != np.int32  # symbols have 0 and 1
    constants += [] if measured else ["mean"]
    dataset = Dataset(
        parts["train"],
        parts["test"],
        num_classes,
        mean,
        std,
        name,
        owners,
        test_owners,
        constants=tuple(constants),
        client_names=client_names,
        class_names=class_names,
        feature_names=feature_names,
        learned=learned,
    )
    try:
        dataset.validate()
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return dataset


def _number_clients(
    arrays: Mapping[str, np.ndarray], where: str, names: np.ndarray | None
) -> tuple[Mapping[str, np.ndarray], np.ndarray | None]:
    """The arrays with clients that are texts numbered in sorted order, over both parts; and the clients' names."""
    keys = [key for key in ("client_train", "client_test") if key in arrays]
    texts = [key for key in keys if arrays[key].dtype.kind in "USO"]
    if not texts:
        return arrays, names
    if texts != keys:
        raise UserError(f"{where}: {texts[0]} holds texts and the other part numbers; name clients alike in both")
    numbers, names = numbered(np.concatenate([arrays[key] for key in keys]), where)
    ends = np.cumsum([len(arrays[key]) for key in keys])
    return {**arrays, **dict(zip(keys, np.split(numbers, ends[:-1]), strict=True))}, names


def chosen_kind(target_kind: str, targets: str) -> str:
    """The `target_kind` of a source: that which the task takes, where it is left to `auto` and that is no class."""
    named = {kind: name for name, kind in TARGETS.items() if kind != CLASSES}
    return named.get(targets, "auto") if target_kind == "auto" else target_kind


def drawn_rows(where: str, seed: int, available: dict[str, int], wanted: dict[str, int]) -> dict[str, np.ndarray]:
    """Which rows of each part are used, ascending: so many, uniformly without replacement; all where 0 are wanted."""
    rng, rows = np.random.default_rng([_ROWS_STREAM, seed]), {}
    for name, total in available.items():
        if wanted[name] > total:
            raise UserError(f"{where}: {wanted[name]} {name} rows are wanted, but there are {total}")
        rows[name] = np.sort(rng.choice(total, wanted[name], replace=False)) if wanted[name] else np.arange(total)
    return rows


def check_wanted(**wanted: int) -> None:
    """ValueError for a negative number of rows."""
    for name, number in wanted.items():
        if number < 0:
            raise ValueError(f"{name} is {number}; it must be at least 1, or 0 for all")


def check_standardize(standardize: str) -> None:
    """ValueError for a way to standardize that there is not."""
    if standardize not in STANDARDIZE:
        raise ValueError(f"standardize is {standardize!r}; allowed are {', '.join(STANDARDIZE)}")


def measured_stats(x: np.ndarray, where: str, standardize: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation by `channel_stats`, of rows `x`, in one of the ways STANDARDIZE.

    `auto` takes those of each column where rows are floating features [N, F], and else those of each channel of images
    or of all values. `column` takes those along the last axis, `whole` those of all values, `none` 0 and 1.
    """
    if standardize == "none":
        return (0.0,), (1.0,)
    if standardize == "auto":
        return channel_stats(x, where, by_column=x.ndim == 4 or (x.ndim == 2 and x.dtype.kind == "f"))
    return channel_stats(x, where, by_column=standardize == "column" and x.ndim > 1)


def channel_stats(
    x: np.ndarray, where: str = "x", *, by_column: bool | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of x / 255 where x is uint8, of x where it is floating, read in chunks.

    Of each place along the last axis if `by_column`, which where None holds for images [N, H, W, C]; else one number
    each. Integers other than uint8 are taken for symbols, which are not normalized: mean 0, deviation 1. A deviation
    that float32 cannot tell from 0, as of a constant channel, becomes 1.
    """
    if x.dtype.kind in "iu" and x.dtype != np.uint8:
        return (0.0,), (1.0,)
    by_column = x.ndim == 4 if by_column is None else by_column
    channels = x.shape[-1] if by_column else 1
    scale = 255.0 if x.dtype == np.uint8 else 1.0
    totals = np.zeros((2, channels))
    shift = x[:1].reshape(-1, channels).mean(axis=0, dtype=np.float64) if len(x) else 0.0  # against cancellation
    rows_at_once = max(1, min(_ROWS_AT_ONCE, _VALUES_AT_ONCE * len(x) // max(x.size, 1)))
    with np.errstate(over="ignore", invalid="ignore"):  # results of NaN and infinities are refused below
        for start in range(0, len(x), rows_at_once):
            values = x[start : start + rows_at_once].reshape(-1, channels).astype(np.float64) - shift
            totals += values.sum(axis=0), np.square(values).sum(axis=0)
    if not np.isfinite(totals).all():
        raise UserError(f"{where}: the training inputs hold NaN, infinities or values too large to square")
    offset, square = totals / max(x.size // channels, 1)
    deviation = np.sqrt(np.maximum(square - offset**2, 0.0))
    deviation = np.where(deviation > _LEAST_DEVIATION, deviation / scale, 1.0)
    return tuple(((offset + shift) / scale).tolist()), tuple(deviation.tolist())


def _inputs(x: np.ndarray, where: str, row_shape: tuple[int, ...] | None) -> np.ndarray:
    if x.ndim < 1 or x.dtype.kind not in "uif":
        advice = "; try .astype(np.float32)" if x.dtype.kind == "b" else ""
        raise UserError(f"{where} is {x.dtype} {x.shape}; it must be [N, ...] of numbers{advice}")
    if row_shape is not None and x.shape[1:] != row_shape:
        if (*x.shape[1:], 1) != row_shape:
            raise UserError(f"{where} has rows of shape {x.shape[1:]}; they must be {row_shape}")
        x = x[..., None]
    if 0 in x.shape[1:]:
        raise UserError(f"{where} has rows of shape {x.shape[1:]}, without any values")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind == "f":
        with np.errstate(over="ignore"):  # `validate` finds values that become infinite
            return x.astype(np.float32, copy=False)
    return _to_int32(x, where)


def _labels(values: np.ndarray, where: str, x: np.ndarray) -> np.ndarray:
    if x.ndim > 1 and x.shape[1] > 1 and values.shape == x.shape[:2] and values.dtype.kind in "iu":
        return _to_int32(values, where)
    return _integers(values, where, len(x))


def _numbers(values: np.ndarray, where: str, x: np.ndarray) -> np.ndarray:
    """float32 [N] or [N, K], all finite in it."""
    if values.ndim not in (1, 2) or len(values) != len(x) or values.dtype.kind not in "iuf" or 0 in values.shape[1:]:
        raise UserError(f"{where} is {values.dtype} {values.shape}; it must be [{len(x)}] or [{len(x)}, K] numbers")
    with np.errstate(over="ignore"):
        single = values.astype(np.float32, copy=False)
    if not finite(single):
        row = int((~np.isfinite(single)).reshape(len(single), -1).any(axis=1).argmax())
        raise UserError(f"{where}: row {row} holds NaN, an infinity or a number beyond float32; leave such rows out")
    return single


def _marks(values: np.ndarray, where: str, x: np.ndarray) -> np.ndarray:
    """uint8 [N, L] of 0 and 1."""
    if values.ndim != 2 or len(values) != len(x) or values.dtype.kind not in "biuf" or not values.shape[1]:
        raise UserError(f"{where} is {values.dtype} {values.shape}; it must be [{len(x)}, L] of 0 and 1")
    if not ((values == 0) | (values == 1)).all():
        row = int(((values != 0) & (values != 1)).any(axis=1).argmax())
        raise UserError(f"{where}: row {row} holds {values[row].tolist()[:9]}; labels are 0 or 1, several in a row")
    return values.astype(np.uint8, copy=False)


def _integers(values: np.ndarray, where: str, rows: int) -> np.ndarray:
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (rows,) or values.dtype.kind not in "iu":
        raise UserError(
            f"{where} is {values.dtype} {values.shape}; it must be [{rows}] integers, one for each row"
            f"{label_advice(values) if values.shape[:1] == (rows,) else ''}"
        )
    return _to_int32(values, where)


def _to_int32(values: np.ndarray, where: str) -> np.ndarray:
    check_int32(values, where)
    return values.astype(np.int32, copy=False)


_TARGETS = {CLASSES: _labels, BINARY: _labels, VALUES: _numbers, MARKS: _marks}
