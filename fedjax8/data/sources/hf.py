"""Data sets of the library Hugging Face `datasets`: saved to disk, or, online, by their name on the hub.

    dataset.save_to_disk("DATA/birds")                          a Dataset, or a DatasetDict with train and test

    python -m fedjax8.train --data_dir=DATA --config.data.name=hf --config.data.folder=birds \
        --config.data.x=image --config.data.y=species --config.data.client=camera \
        --config.partition.name=by_key --config.num_clients=0

The types of the columns decide what the rows are:

    x   an image, PNG or JPEG   uint8 [H, W, C], all of one size unless `size` resizes them
        numbers, in several columns or lists of one length; lists of whole numbers are tokens, or pixels if uint8
        a text                  characters by the ids of `shakespeare`; with y cut or padded to `sequence_length`,
                                without y in windows whose next characters are the targets
    y   ClassLabel, texts, whole numbers        classes; texts are numbered in sorted order; names are kept
        real numbers, or lists of them          float32 [N] or [N, K]
        lists of classes, or of 0 and 1         uint8 [N, L]: a mark for each label of the row
        client of any type                      natural clients, by name

Needs `pip install 'fedjax8[hf]'`. No code of a data set is run.
"""

import inspect
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.names import numbered, unpacked
from fedjax8.data.sources._build import TARGETS, build_dataset, check_standardize, chosen_kind
from fedjax8.data.sources._files import own_path
from fedjax8.data.sources._streams import Clients, Stream
from fedjax8.data.sources.image_folder import open_image
from fedjax8.data.sources.shakespeare import PADDING, VOCABULARY, bytes_of, ids_of, windows
from fedjax8.errors import UserError
from fedjax8.lookup import optional, suggest
from fedjax8.types import CLASSES

_TEST_STREAM = 0x4F7E57
_ROWS_AT_ONCE = 1024
_SPLITS = ("hub", "subset", "train", "test", "test_fraction", "seed")


class _Wanted(NamedTuple):
    """Columns and how they are read."""

    where: str
    x: tuple[str, ...]
    y: tuple[str, ...]
    client: str
    size: int
    channels: int
    sequence_length: int
    target_kind: str


def hf(
    data_dir: str | None = None,
    folder: str = "",
    *,
    hub: str = "",
    subset: str = "",
    x: str | Sequence[str] = "",
    y: str | Sequence[str] = "",
    client: str = "",
    train: str = "train",
    test: str = "test",
    test_fraction: float = 0.2,
    seed: int = 0,
    size: int = 0,
    channels: int = 0,
    sequence_length: int = 80,
    target_kind: str = "auto",
    standardize: str = "auto",
    targets: str = CLASSES,
) -> Dataset:
    """The rows of a data set: x and y as the types of their columns say.

    Args:
        data_dir: None for `$FEDJAX8_DATA`, or else the working folder.
        folder: in it, as `save_to_disk` wrote it.
        hub: its name on the hub instead, which needs the network, such as `ylecun/mnist`.
        subset: of that data set, where it has several.
        x: column of the inputs, or several of numbers; where empty the only column of images.
        y: column of the targets, or several; where empty the only one of classes, and none for a text.
        client: column of the natural client of each row; empty for none.
        train: split with the training rows.
        test: split with the test rows; where there is none, a share of the training rows.
        test_fraction: that share, between 0 and 1.
        seed: of its draw.
        size: pixels along a side to which images are resized; 0 to leave them.
        channels: 1 for gray images, 3 for color; 0 for those of the first image.
        sequence_length: characters of a row of text.
        target_kind: as of `csv`; `classification` also of lists, for a class at every position.
        standardize: as of `npz`.
        targets: supplied by the program: the kind that the task takes, for `auto`.

    Raises:
        UserError: the library is not installed, no such data set, split or column, or rows that are not as said above.
    """
    check_standardize(standardize)
    kind = chosen_kind(target_kind, targets)
    parts, wanted = _opened(
        data_dir, folder, hub, subset, train, test, test_fraction, seed,
        _Wanted(folder or hub, _tuple(x), _tuple(y), client, size, channels, sequence_length, kind),
    )  # fmt: skip
    kind, settings, classes = _targets(parts, wanted)
    arrays: dict[str, np.ndarray] = {}
    for part, table in parts.items():
        arrays[f"x_{part}"], arrays[f"y_{part}"], repeats = _rows(table, wanted, classes)
        if client:
            ids = _ids(table, wanted)
            arrays[f"client_{part}"] = ids if repeats is None else np.repeat(ids, repeats)
    if client:
        both = np.concatenate([arrays["client_train"], arrays["client_test"]])
        numbers, settings["client_names"] = numbered(both, wanted.where)
        arrays |= zip(("client_train", "client_test"), np.split(numbers, [len(arrays["client_train"])]), strict=True)
    return build_dataset(
        Path(wanted.where).name, wanted.where, arrays, standardize=standardize, targets=TARGETS[kind], **settings
    )


def stream(data_dir: str | None = None, folder: str = "", **settings: Any) -> Stream:
    """The same, client by client, of one called `all` without a client column; see `hf`."""
    options = {name: option.default for name, option in inspect.signature(hf).parameters.items()} | settings
    given: dict[str, Any] = {name: options[name] for name in _Wanted._fields if name != "where"}
    splits: dict[str, Any] = {name: options[name] for name in _SPLITS}
    given |= {"x": _tuple(given["x"]), "y": _tuple(given["y"])}
    parts, wanted = _opened(data_dir, folder, **splits, wanted=_Wanted(folder or splits["hub"], **given))
    kind, known, classes = _targets(parts, wanted)

    def clients(part: str) -> Clients:
        owners = _ids(parts[part], wanted) if wanted.client else np.full(len(parts[part]), "all")
        ids, names = numbered(owners, wanted.where)
        order = np.argsort(ids, kind="stable")
        places = np.split(order, np.cumsum(np.bincount(ids))[:-1])
        for client, rows in zip(unpacked(names), places, strict=True):
            x, y, _ = _rows(parts[part].select(rows), wanted, classes)
            dtypes = {"classification": np.int32, "regression": np.float32, "multilabel": np.uint8}
            x = x.astype(np.float32 if x.dtype.kind == "f" else x.dtype if x.dtype == np.uint8 else np.int32)
            yield client, {"x": x, "y": y.astype(dtypes[kind])}

    return Stream(
        Path(wanted.where).name,
        wanted.where,
        lambda: clients("train"),
        lambda: clients("test"),
        known | {"targets": TARGETS[kind]},
    )


def _tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    return ((names,) if names else ()) if isinstance(names, str) else tuple(names)


def _opened(
    data_dir: str | None,
    folder: str,
    hub: str,
    subset: str,
    train: str,
    test: str,
    test_fraction: float,
    seed: int,
    wanted: _Wanted,
) -> tuple[dict[str, Any], _Wanted]:
    """The two parts as tables of the library, and the columns, found where they weren't named."""
    if bool(folder) == bool(hub):
        raise ValueError("give folder (saved to disk) or hub (its name there), one of the two")
    if wanted.target_kind not in ("auto", *TARGETS):
        raise ValueError(f"target_kind is {wanted.target_kind!r}; allowed are auto, {', '.join(TARGETS)}")
    if not 0.0 < test_fraction < 1.0 or wanted.channels not in (0, 1, 3) or wanted.size < 0:
        raise ValueError(
            f"test_fraction is {test_fraction}, channels {wanted.channels}, size {wanted.size}; they must be between 0 "
            "and 1; 0, 1 or 3; and at least 0"
        )
    if wanted.sequence_length < 2:
        raise ValueError(f"sequence_length is {wanted.sequence_length}; it must be at least 2")
    library = optional("datasets", "reading Hugging Face data sets", "hf")
    where = str(own_path("hf", data_dir, folder)) if folder else hub
    try:
        found = library.load_from_disk(where) if folder else library.load_dataset(hub, subset or None)
    except Exception as error:  # of a damaged folder, or without a network, almost anything
        raise UserError(f"{where}: cannot be opened as a data set ({' '.join(str(error).split())[:200]})") from error
    splits = found if isinstance(found, dict) else {train: found}
    if train not in splits:
        raise UserError(f"{where} has no split {train!r}; it has {', '.join(splits)}; set train and test")
    if test in splits:
        parts = {"train": splits[train], "test": splits[test]}
    else:
        rows = len(splits[train])
        chosen = np.zeros(rows, bool)
        drawn = np.random.default_rng([_TEST_STREAM, seed]).permutation(rows)
        chosen[drawn[: max(1, round(test_fraction * rows))]] = True
        parts = {p: splits[train].select(np.flatnonzero(chosen == (p == "test"))) for p in ("train", "test")}
    for part, table in parts.items():
        if not len(table):
            raise UserError(f"{where}: no row is for {part}ing")
    return parts, _with_columns(parts, wanted._replace(where=where))


def _with_columns(parts: dict[str, Any], wanted: _Wanted) -> _Wanted:
    """The columns that are there; UserError for others, and for those that cannot be told."""
    features = parts["train"].features
    of_type = lambda kind: tuple(c for c, f in features.items() if type(f).__name__ == kind)
    x = wanted.x or of_type("Image")
    is_text = len(x) == 1 and getattr(features.get(x[0]), "dtype", "") in ("string", "large_string")
    y = wanted.y or (() if is_text else of_type("ClassLabel"))
    for key, columns in (("x", x), ("y", y)):
        if (len(columns) != 1 and not getattr(wanted, key)) and not (key == "y" and is_text):
            raise UserError(f"{wanted.where}: name the column of {key}, as {key}=NAME; it has {', '.join(features)}")
    for column in (*x, *y, *([wanted.client] if wanted.client else [])):
        for part, table in parts.items():
            if column not in table.features:
                advice = suggest(column, features)
                raise UserError(
                    f"{wanted.where}: {part} has no column {column!r}; it has {', '.join(features)}{advice}"
                )
    if len({*x, *y, wanted.client}) < len(x) + len(y) + 1:
        raise UserError(f"{wanted.where}: columns {', '.join((*x, *y))} and client {wanted.client!r} must differ")
    return wanted._replace(x=x, y=y)


def _targets(parts: dict[str, Any], wanted: _Wanted) -> tuple[str, dict[str, Any], dict[str, int] | None]:
    """Kind of the targets, settings of `build_dataset`, and the numbers of classes that are texts or listed."""
    if not wanted.y:
        return "classification", {"num_classes": VOCABULARY}, None
    kind = wanted.target_kind
    if len(wanted.y) > 1:
        values = np.stack([_column(parts["train"], c, wanted) for c in wanted.y])
        marks = values.dtype.kind in "biu" and ((values == 0) | (values == 1)).all()
        return ("multilabel" if marks else "regression") if kind == "auto" else kind, {"class_names": wanted.y}, None
    feature = parts["train"].features[wanted.y[0]]
    inner = getattr(feature, "feature", feature)
    listed, names = inner is not feature, tuple(getattr(inner, "names", ()))
    if kind in ("auto", "multilabel") and listed and names:
        return "multilabel", {"class_names": names}, {name: i for i, name in enumerate(names)}
    if names:
        return "classification", {"num_classes": len(names), "class_names": names}, None
    dtype = str(getattr(inner, "dtype", ""))
    if "string" in dtype and not listed:
        found = np.unique(np.concatenate([_texts(table, wanted.y[0], wanted) for table in parts.values()])).tolist()
        known = {"num_classes": len(found), "counted": True, "class_names": tuple(found)}
        return "classification", known, {text: i for i, text in enumerate(found)}
    if kind == "auto":
        kind = "regression" if "float" in dtype else "multilabel" if listed else "classification"
    return kind, {}, None


def _rows(table: Any, wanted: _Wanted, classes: dict[str, int] | None) -> tuple[np.ndarray, np.ndarray, Any]:
    """x, y, and how many rows each row of the table became where that is not one."""
    feature = table.features[wanted.x[0]]
    if len(wanted.x) == 1 and type(feature).__name__ == "Image":
        x = _images(table, wanted)
    elif len(wanted.x) == 1 and getattr(feature, "dtype", "") in ("string", "large_string"):
        texts = [bytes_of(text) for text in _texts(table, wanted.x[0], wanted)]
        if not wanted.y:
            return _windows(texts, wanted)
        x = np.full((len(texts), wanted.sequence_length), PADDING, np.int32)
        for row, text in zip(x, texts, strict=True):
            row[: len(text)] = ids_of(text[: len(row)])
    elif len(wanted.x) == 1:
        x = _column(table, wanted.x[0], wanted)
        x = x[:, None].astype(np.float32) if x.ndim == 1 else x
    else:
        columns = [_column(table, column, wanted) for column in wanted.x]
        if any(c.ndim > 1 for c in columns):
            raise UserError(f"{wanted.where}: of several columns of x each must hold a number a row")
        x = np.stack(columns, axis=1).astype(np.float32)
    return x, _labels(table, wanted, classes), None


def _labels(table: Any, wanted: _Wanted, classes: dict[str, int] | None) -> np.ndarray:
    if len(wanted.y) > 1:
        return np.stack([_column(table, column, wanted) for column in wanted.y], axis=1)
    column = wanted.y[0]
    feature = table.features[column]
    if classes is not None and getattr(feature, "feature", None) is not None:
        marks = np.zeros((len(table), len(classes)), np.uint8)
        for row, found in enumerate(_plain(table, column)):
            if found is None or any(not isinstance(c, int) or not 0 <= c < len(classes) for c in found):
                raise UserError(f"{wanted.where}: row {row} of {column!r} is {found!r:.80}; it must list classes")
            marks[row, found] = 1
        return marks
    if classes is not None:
        texts = _texts(table, column, wanted)
        return np.array([classes[text] for text in texts], np.int32)
    y = _column(table, column, wanted)
    if y.dtype.kind == "b":
        y = y.astype(np.uint8)
    if type(feature).__name__ == "ClassLabel" and y.min() < 0:
        row = int((y < 0).argmax())
        raise UserError(f"{wanted.where}: row {row} of {column!r} has no label (-1); choose another split as test")
    return y


def _windows(texts: list[np.ndarray], wanted: _Wanted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    sizes = np.array([len(text) for text in texts], np.int64)
    x, y, owners = windows(np.concatenate(texts), np.concatenate([[0], np.cumsum(sizes)]), wanted.sequence_length)
    if not len(x):
        raise UserError(f"{wanted.where}: all texts are empty")
    return x, y, np.bincount(owners, minlength=len(texts))


def _images(table: Any, wanted: _Wanted) -> np.ndarray:
    """uint8 [N, H, W, C], decoded by the same two decoders as `image_folder`'s."""
    column = wanted.x[0]
    stored = table.cast_column(column, optional("datasets", "reading images", "hf").Image(decode=False))
    images: np.ndarray | None = None
    size = (wanted.size, wanted.size) if wanted.size else None
    for row, found in enumerate(_plain(stored, column)):
        at = f"{wanted.where}: row {row} of {column!r}"
        if not found or not found.get("bytes"):
            raise UserError(f"{at} has no image in the data set itself; dataset.save_to_disk(...) puts them there")
        pixels = open_image(io.BytesIO(found["bytes"]), at, wanted.channels, size)
        if images is None:
            images = np.empty((len(table), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            kinds = "gray or colored" if pixels.shape[:2] == images.shape[1:3] else "of another size"
            raise UserError(
                f"{at} is {pixels.shape}, {kinds}, and row 0 {images.shape[1:]}; set --config.data.size=N to resize "
                "images, --config.data.channels=1 or 3 to make them alike"
            )
        images[row] = pixels
    assert images is not None  # no part is empty
    return images


def _plain(table: Any, column: str) -> Any:
    """Values of a column as Python objects, some rows at a time."""
    only = table.select_columns([column])
    for first in range(0, len(table), _ROWS_AT_ONCE):
        yield from only[first : first + _ROWS_AT_ONCE][column]


def _column(table: Any, column: str, wanted: _Wanted) -> np.ndarray:
    """[N, ...] numbers of a column; UserError for anything else, and for lists of several lengths."""
    values = np.asarray(table.select_columns([column]).with_format("numpy")[:][column])
    if values.dtype.kind not in "biuf" or len(values) != len(table):
        feature = table.features[column]
        missing = next((row for row, value in enumerate(_plain(table, column)) if value is None), None)
        at = f"; row {missing} has none" if missing is not None else ""
        raise UserError(
            f"{wanted.where}: column {column!r} is {' '.join(str(feature).split())[:80]}; it must hold a number a row, "
            f"or lists of one length{at}"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int((~np.isfinite(values)).reshape(len(values), -1).any(axis=1).argmax())
        raise UserError(f"{wanted.where}: row {row} of column {column!r} is missing or not finite; leave it out")
    return values


def _texts(table: Any, column: str, wanted: _Wanted) -> np.ndarray:
    """[N] texts, none of them missing."""
    values = list(_plain(table, column))
    wrong = next((row for row, value in enumerate(values) if not isinstance(value, str)), None)
    if wrong is not None:
        raise UserError(f"{wanted.where}: row {wrong} of column {column!r} is {values[wrong]!r:.40}, no text")
    return np.array(values)


def _ids(table: Any, wanted: _Wanted) -> np.ndarray:
    """[N] ids of clients: whole numbers or texts."""
    values = list(_plain(table, wanted.client))
    wrong = next((row for row, value in enumerate(values) if value is None or isinstance(value, list | dict)), None)
    if wrong is not None:
        raise UserError(f"{wanted.where}: row {wrong} of column {wanted.client!r} names no client")
    kinds = {type(value) for value in values}
    return np.array(values) if kinds <= {int} or kinds <= {float} or kinds <= {str} else np.array([*map(str, values)])


EXAMPLES = ({"folder": "hf_example"},)
