"""Tables: a CSV or Parquet file with a column to predict, columns of features, and perhaps a column of clients.

    python -m fedjax8.train --data_dir=. --config.data.name=csv --config.data.file=visits.csv \
        --config.data.target=outcome --config.data.client=hospital \
        --config.partition.name=by_key --config.num_clients=0 --config.cohort_size=3

Read by pyarrow (`pip install 'fedjax8[csv]'`). CSV has one row of column names, values in UTF-8 between commas (tabs in
`.tsv`), and quotes around values with commas or line ends. Only an empty value is a missing one: "NA" is a text.
Every feature is a number, standardized by column; columns of texts become numbers where `categorical` names them, a
column of 0 and 1 for each value that training rows have, in sorted order. Nothing is guessed: missing values, texts
among numbers and constant columns are refused, with the column and its first such row.
"""

import csv as reader
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.names import numbered
from fedjax8.data.sources._build import TARGETS, build_dataset, check_standardize
from fedjax8.data.sources._files import own_path
from fedjax8.errors import UserError
from fedjax8.lookup import optional, suggest

_TEST_STREAM = 0x7E57
"""Keeps the draw of test rows apart from other streams made from the same seed."""
_PARTS = {"train": False, "test": True, "0": False, "1": True, "false": False, "true": True}
_MANY = 20
"""More whole numbers than this, in more than half of the rows each another, are no classes."""


class _Table(NamedTuple):
    """Columns of one or two files, one below the other."""

    columns: dict[str, Any]
    """Name -> pyarrow `ChunkedArray` `[N]`."""
    files: tuple[tuple[Path, int], ...]
    """Each file, and where its rows begin."""

    def at(self, name: str, row: int) -> str:
        """A place, for errors: file, column and row, counted as a spreadsheet does."""
        path, first = next((p, first) for p, first in reversed(self.files) if row >= first)
        is_csv = path.suffix != ".parquet"
        return f"{path}: column {name!r}, row {row - first + 1 + is_csv}{' (the header is row 1)' * is_csv}"


def csv(
    data_dir: str | None = None,
    file: str = "",
    *,
    target: str | Sequence[str] = "",
    client: str = "",
    features: Sequence[str] = (),
    categorical: Sequence[str] = (),
    target_kind: str = "auto",
    classes: Sequence[str] = (),
    test_file: str = "",
    test_column: str = "",
    test_fraction: float = 0.2,
    seed: int = 0,
    delimiter: str = "",
    standardize: str = "auto",
) -> Dataset:
    """The rows of a table: x float32 [N, features], y as `target_kind` says.

    Args:
        data_dir: None for `$FEDJAX8_DATA`, or else the working folder.
        file: a `.csv`, `.tsv` or `.parquet` file in it; needed.
        target: the column to predict, or several; needed.
        client: column of the natural client of each row: numbers, texts, UUIDs; empty for none.
        features: columns of x, in this order; all others where empty.
        categorical: those of them with texts (or numbers that are names), each of which becomes columns of 0 and 1.
        target_kind: `classification` (values are numbered in sorted order, and kept as names), `regression` (one column
            or several) or `multilabel` (a column of 0 and 1 for each label). `auto`: several columns of 0 and 1 are
            `multilabel`; texts and whole numbers in one column `classification`; else `regression`.
        classes: all values of a target of classes, in the order of their numbers; empty for those that occur, sorted.
        test_file: the test rows; empty for a part of `file`.
        test_column: column that says `train` or `test` (or 0 or 1) of each row.
        test_fraction: share of the rows drawn for testing where neither is given, between 0 and 1.
        seed: of that draw.
        delimiter: between values; empty for a comma, or a tab in `.tsv`.
        standardize: as of `npz`.

    Raises:
        UserError: pyarrow is not installed, no such file or column, or values that are not as said above.
    """
    check_standardize(standardize)
    targets = [target] if isinstance(target, str) else list(target)
    if not file or not all(targets) or not targets:
        raise ValueError("file and target are needed: a .csv or .parquet file, and the name of the column to predict")
    if target_kind not in ("auto", *TARGETS):
        raise ValueError(f"target_kind is {target_kind!r}; allowed are auto, {', '.join(TARGETS)}")
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; it must lie strictly between 0 and 1")
    if test_file and test_column:
        raise ValueError("both test_file and test_column are given; test rows come from one of them")
    table = _read(own_path("csv", data_dir, file), delimiter)
    if test_file:
        table = _below(table, _read(own_path("csv", data_dir, test_file), delimiter))
    apart = [*targets, *([client] if client else []), *([test_column] if test_column else [])]
    inputs = list(features) or [name for name in table.columns if name not in apart]
    for name in (*apart, *inputs, *categorical):
        if name not in table.columns:
            there = ", ".join(list(table.columns)[:30])
            advice = suggest(name, table.columns) or "; is the delimiter another?" * (len(table.columns) == 1)
            raise UserError(f"{table.files[0][0]} has no column {name!r}; it has {there}{advice}")
    _check_roles(apart, inputs, categorical)
    is_test = _test_rows(table, test_column, test_fraction, seed)
    x = _inputs(table, inputs, categorical, is_test)
    y, kind, names = _targets(table, targets, target_kind, tuple(map(str, classes)))
    arrays = {f"{key}_{part}": values[rows] for part, rows in (("train", ~is_test), ("test", is_test))
              for key, values in (("x", x), ("y", y))}  # fmt: skip
    client_names = None
    if client:
        clients, client_names = numbered(_ids(table, client), f"{table.files[0][0]}: column {client!r}")
        arrays |= {"client_train": clients[~is_test], "client_test": clients[is_test]}
    return build_dataset(
        table.files[0][0].stem,
        str(table.files[0][0]),
        arrays,
        standardize=standardize,
        targets=kind,
        num_classes=len(names) if kind == "classification" else None,
        counted=not classes,
        class_names=names,
        client_names=client_names,
    )


def _library(module: str) -> Any:
    return optional(module, "reading tables", "csv")


def _read(path: Path, delimiter: str) -> _Table:
    """The columns of one file: of CSV all as texts, empty ones null; of Parquet as they are."""
    arrow = _library("pyarrow")
    if path.suffix not in (".csv", ".tsv", ".parquet"):
        raise UserError(f"{path}: the name of a table must end with .csv, .tsv or .parquet")
    try:
        if path.suffix == ".parquet":
            parquet = _library("pyarrow.parquet")
            with parquet.ParquetFile(path) as opened:
                names = list(opened.schema_arrow.names)
                _check_header(path, names)
                found = opened.read()
        else:
            comma = delimiter or ("\t" if path.suffix == ".tsv" else ",")
            names = _header(path, comma)
            _check_header(path, names)
            arrow_csv = _library("pyarrow.csv")
            found = arrow_csv.read_csv(
                path,
                parse_options=arrow_csv.ParseOptions(delimiter=comma, newlines_in_values=True),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(names, arrow.string()), null_values=[""], strings_can_be_null=True
                ),
            )
    except UserError:
        raise
    except Exception as error:  # readers of damaged files raise almost anything
        raise UserError(f"{path}: cannot be read as a table ({' '.join(str(error).split())[:200]})") from error
    if not found.num_rows:
        raise UserError(f"{path} has no rows below its header")
    return _Table({name: found.column(i) for i, name in enumerate(names)}, ((path, 0),))


def _header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return next(reader.reader(lines, delimiter=delimiter), [])


def _check_header(path: Path, names: list[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"{path}: row 1 names column {twice[0]!r} twice; give each column a name of its own")
    if "" in names or not names:
        raise UserError(f"{path}: row 1 leaves column {names.index('') + 1 if names else 1} without a name")


def _below(table: _Table, other: _Table) -> _Table:
    """The rows of both tables."""
    arrow = _library("pyarrow")
    (path, _), (below, _) = table.files[0], other.files[0]
    missing = [name for name in table.columns if name not in other.columns]
    if missing:
        raise UserError(f"{below} lacks column {missing[0]!r}, which {path} has")
    columns = {}
    for name, column in table.columns.items():
        second = other.columns[name]
        if second.type != column.type:
            raise UserError(f"{below}: column {name!r} is {second.type}, but {column.type} in {path}")
        columns[name] = arrow.chunked_array([*column.chunks, *second.chunks], column.type)
    return _Table(columns, ((path, 0), (below, len(next(iter(table.columns.values()))))))


def _check_roles(apart: list[str], inputs: list[str], categorical: Sequence[str]) -> None:
    for name in {*apart}:
        if name in inputs or apart.count(name) > 1:
            raise UserError(f"column {name!r} has two roles; a column is a feature, a target, the client or the part")
    twice = [name for name in inputs if inputs.count(name) > 1]
    if twice or not inputs:
        raise UserError(f"feature {twice[0]!r} is there twice" if twice else "no column is left for features")
    extra = [name for name in categorical if name not in inputs]
    if extra:
        raise UserError(f"categorical column {extra[0]!r} is not among the features")


def _test_rows(table: _Table, column: str, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: whether a row is for testing."""
    rows = len(next(iter(table.columns.values())))
    if len(table.files) > 1:
        return np.arange(rows) >= table.files[1][1]
    if column:
        said = np.char.lower(_texts(table, column).astype(str))
        unknown = ~np.isin(said, list(_PARTS))
        if unknown.any():
            row = int(unknown.argmax())
            raise UserError(f"{table.at(column, row)} is {str(said[row])!r:.40}; it must say train or test")
        is_test = np.isin(said, [text for text, test in _PARTS.items() if test])
    else:
        rng = np.random.default_rng([_TEST_STREAM, seed])
        is_test = np.zeros(rows, bool)
        is_test[rng.permutation(rows)[: max(1, round(fraction * rows))]] = True
    if is_test.all() or not is_test.any():
        raise UserError(
            f"{table.files[0][0]}: no row is for {'training' if is_test.all() else 'testing'}; both need one"
        )
    return is_test


def _inputs(table: _Table, names: list[str], categorical: Sequence[str], is_test: np.ndarray) -> np.ndarray:
    """float32 [N, columns]: numbers, and 0 or 1 for each value of those that are categorical."""
    made: list[np.ndarray] = []
    for name in names:
        if name in categorical:
            values = _texts(table, name).astype(str)
            known = np.unique(values[~is_test])
            other = ~np.isin(values, known)
            if other.any():
                row = int(other.argmax())
                raise UserError(f"{table.at(name, row)} is {str(values[row])!r:.40}, a value that no training row has")
            columns = (values[:, None] == known).astype(np.float32)
        else:
            advice = f"; if its values are names, add it to categorical=({name!r},), else leave it out of features"
            columns = _numbers(table, name, advice).astype(np.float32)[:, None]
        if (np.ptp(columns[~is_test], axis=0) == 0).any():
            raise UserError(
                f"{table.at(name, int((~is_test).argmax()))} and all other training rows have one value; a constant "
                "column tells nothing: leave it out of features"
            )
        made.append(columns)
    return np.concatenate(made, axis=1)


def _targets(
    table: _Table, names: list[str], kind: str, classes: tuple[str, ...]
) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Targets, their kind, and the names of classes or of columns."""
    if classes and (len(names) > 1 or kind not in ("auto", "classification")):
        raise UserError("classes are given, but the targets are no classes; leave them out, or name one target column")
    if len(names) > 1:
        if kind == "classification":
            raise UserError(f"target has {len(names)} columns, and classification takes one; use multilabel")
        values = np.stack([_numbers(table, name) for name in names], axis=1)
        marks = ((values == 0) | (values == 1)).all()
        return values, ("multilabel" if marks else "regression") if kind == "auto" else kind, tuple(names)
    name = names[0]
    if classes:
        return _known_classes(table, name, classes), "classification", classes
    numeric = _try_numbers(table, name)
    whole = numeric is not None and bool((np.rint(numeric) == numeric).all()) and _written_whole(table, name)
    if kind == "auto":
        kind = "classification" if numeric is None or whole else "regression"
        if whole and len(np.unique(numeric)) > max(_MANY, len(numeric) // 2):
            raise UserError(
                f"{table.files[0][0]}: column {name!r} has {len(np.unique(numeric))} different whole numbers in "
                f"{len(numeric)} rows; say which they are by target_kind=regression or target_kind=classification"
            )
    if kind == "regression":
        return _numbers(table, name), kind, (name,)
    if kind == "multilabel":
        return _numbers(table, name)[:, None], kind, (name,)
    if numeric is not None and not whole:
        row = int((np.rint(numeric) != numeric).argmax())
        raise UserError(f"{table.at(name, row)} is {numeric[row]:g}, no class; use target_kind=regression")
    values = _texts(table, name).astype(str) if numeric is None else numeric.astype(np.int64)
    found, labels = np.unique(values, return_inverse=True)
    if numeric is not None and not np.array_equal(found, np.arange(len(found))):
        logging.getLogger(__name__).warning(
            "%s: the classes of column %r are %s, numbered from 0 in this order",
            table.files[0][0], name, ", ".join(map(str, found[:10].tolist())) + ", ..." * (len(found) > 10),
        )  # fmt: skip
    return labels.reshape(-1).astype(np.int32), kind, tuple(map(str, found.tolist()))


def _known_classes(table: _Table, name: str, classes: tuple[str, ...]) -> np.ndarray:
    """int32 [N]: the place of each value among the classes."""
    values = _texts(table, name).astype(str)
    order = np.argsort(classes)
    ranked = np.asarray(classes)[order]
    if (ranked[1:] == ranked[:-1]).any():
        raise UserError(f"classes are {classes}; they must differ")
    places = np.minimum(np.searchsorted(ranked, values), len(classes) - 1)
    other = ranked[places] != values
    if other.any():
        row = int(other.argmax())
        raise UserError(f"{table.at(name, row)} is {str(values[row])!r:.40}, none of the classes {', '.join(classes)}")
    return order[places].astype(np.int32)


def _written_whole(table: _Table, name: str) -> bool:
    """Whether no number has a point: 1.0 is measured, 1 counted."""
    types, compute, column = _library("pyarrow").types, _library("pyarrow.compute"), table.columns[name]
    if types.is_string(column.type):
        return not compute.any(compute.match_substring_regex(column, "[.eE]")).as_py()
    return types.is_integer(column.type) or types.is_boolean(column.type)


def _numbers(table: _Table, name: str, advice: str = "") -> np.ndarray:
    """float64 [N], finite; UserError with the first row that is missing, a text, or not finite."""
    values = _try_numbers(table, name)
    if values is not None:
        return values
    column = table.columns[name]
    low, high = 0, len(column)  # rows below `low` are numbers, those below `high` are not all
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _cast(column.slice(low, middle - low)) is not None else (low, middle)
    shown = column[low].as_py()
    raise UserError(f"{table.at(name, low)} is {str(shown)!r:.40}, which is no number{advice}")


def _try_numbers(table: _Table, name: str) -> np.ndarray | None:
    """As `_numbers`, but None where there is a text."""
    _check_present(table, name)
    values = _cast(table.columns[name])
    if values is not None and not np.isfinite(values).all():
        row = int((~np.isfinite(values)).argmax())
        raise UserError(
            f"{table.at(name, row)} is {values[row]}, a missing value or infinite; fill it in or leave it out"
        )
    return values


def _cast(column: Any) -> np.ndarray | None:
    """float64 [N] of a column without nulls; None where it isn't all numbers."""
    arrow, compute = _library("pyarrow"), _library("pyarrow.compute")
    types = arrow.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_string(column.type) or types.is_large_string(column.type):
        column = compute.utf8_trim_whitespace(column)
    try:
        if types.is_boolean(column.type):
            column = column.cast(arrow.uint8())
        return column.cast(arrow.float64()).to_numpy()
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
        return None


def _texts(table: _Table, name: str) -> np.ndarray:
    """object [N] of texts."""
    arrow = _library("pyarrow")
    _check_present(table, name)
    try:
        return table.columns[name].cast(arrow.string()).to_numpy()
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
        raise UserError(
            f"{table.files[0][0]}: column {name!r} is {table.columns[name].type}; it must hold texts or numbers"
        ) from error


def _ids(table: _Table, name: str) -> np.ndarray:
    """[N] client ids: int64 where all are whole numbers, bytes of UUIDs in hexadecimal digits, else texts."""
    arrow, column = _library("pyarrow"), table.columns[name]
    _check_present(table, name)
    if arrow.types.is_fixed_size_binary(column.type) or arrow.types.is_binary(column.type):
        return np.array([value.hex() for value in column.to_pylist()])
    if arrow.types.is_floating(column.type):
        values = _numbers(table, name)
        return values.astype(np.int64) if (np.rint(values) == values).all() else values
    try:
        whole = column.cast(arrow.int64())
    except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
        return _texts(table, name).astype(str)
    # "007" and "7" are two clients.
    return whole.to_numpy() if whole.cast(arrow.string()).equals(column.cast(arrow.string())) else _texts(table, name)


def _check_present(table: _Table, name: str) -> None:
    """UserError naming the first row without a value."""
    column = table.columns[name]
    if column.null_count:
        row = int(column.is_null().to_numpy().argmax())
        raise UserError(f"{table.at(name, row)} has no value; fill it in, or leave such rows or the column out")


EXAMPLES = ({"file": "visits.csv", "target": "outcome", "client": "hospital"},)
