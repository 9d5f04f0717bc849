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

import logging
from collections.abc import Sequence

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.names import numbered
from fedjax8.data.sources._build import TARGETS, build_dataset, check_standardize, chosen_kind
from fedjax8.data.sources._files import own_path
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.readers.tables import Table, one_below_the_other, read_table
from fedjax8.types import CLASSES

_TEST_STREAM = 0x7E57
"""Keeps the draw of test rows apart from other streams made from the same seed."""
_PARTS = {"train": False, "test": True, "0": False, "1": True, "false": False, "true": True}
_MANY = 20
"""More whole numbers than this, in more than half of the rows each another, are no classes."""


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
    targets: str = CLASSES,
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
        targets: supplied by the program: the kind that the task takes, for `auto`.

    Raises:
        UserError: pyarrow is not installed, no such file or column, or values that are not as said above.
    """
    check_standardize(standardize)
    columns = [target] if isinstance(target, str) else list(target)
    if not file or not all(columns) or not columns:
        raise ValueError("file and target are needed: a .csv or .parquet file, and the name of the column to predict")
    if target_kind not in ("auto", *TARGETS):
        raise ValueError(f"target_kind is {target_kind!r}; allowed are auto, {', '.join(TARGETS)}")
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; it must lie strictly between 0 and 1")
    if test_file and test_column:
        raise ValueError("both test_file and test_column are given; test rows come from one of them")
    table = read_table(own_path("csv", data_dir, file), delimiter)
    if test_file:
        table = one_below_the_other(table, read_table(own_path("csv", data_dir, test_file), delimiter))
    apart = [*columns, *([client] if client else []), *([test_column] if test_column else [])]
    inputs = list(features) or [name for name in table.columns if name not in apart]
    for name in (*apart, *inputs, *categorical):
        if name not in table.columns:
            there = ", ".join(list(table.columns)[:30])
            parts = tuple(part.strip() for part in name.split(","))
            several = f"; several columns are written {parts}" if {*parts} <= {*table.columns} else ""
            advice = several or suggest(name, table.columns) or "; is the delimiter another?" * (len(table.columns) < 2)
            raise UserError(f"{table.files[0][0]} has no column {name!r}; it has {there}{advice}")
    _check_roles(apart, inputs, categorical)
    is_test = _test_rows(table, test_column, test_fraction, seed)
    x, feature_names = _inputs(table, inputs, categorical, is_test)
    y, kind, names = _targets(table, columns, chosen_kind(target_kind, targets), tuple(map(str, classes)))
    arrays = {f"{key}_{part}": values[rows] for part, rows in (("train", ~is_test), ("test", is_test))
              for key, values in (("x", x), ("y", y))}  # fmt: skip
    client_names = None
    if client:
        clients, client_names = numbered(table.ids(client), f"{table.files[0][0]}: column {client!r}")
        arrays |= {"client_train": clients[~is_test], "client_test": clients[is_test]}
    return build_dataset(
        table.files[0][0].stem,
        str(table.files[0][0]),
        arrays,
        standardize=standardize,
        targets=TARGETS[kind],
        num_classes=len(names) if kind == "classification" else None,
        counted=not classes,
        class_names=names,
        client_names=client_names,
        feature_names=feature_names,
        learned=tuple(f"the values of column {name!r}" for name in categorical),
    )


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


def _test_rows(table: Table, column: str, fraction: float, seed: int) -> np.ndarray:
    """bool [N]: whether a row is for testing."""
    rows = table.num_rows
    if len(table.files) > 1:
        return np.arange(rows) >= table.files[1][1]
    if column:
        said = np.char.lower(table.texts(column).astype(str))
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


def _inputs(
    table: Table, names: list[str], categorical: Sequence[str], is_test: np.ndarray
) -> tuple[np.ndarray, tuple[str, ...]]:
    """float32 [N, columns]: numbers, and 0 or 1 for each value of those that are categorical; names of the columns."""
    made: list[np.ndarray] = []
    called: list[str] = []
    for name in names:
        if name in categorical:
            values = table.texts(name).astype(str)
            known = np.unique(values[~is_test])
            other = ~np.isin(values, known)
            if other.any():
                row = int(other.argmax())
                raise UserError(f"{table.at(name, row)} is {str(values[row])!r:.40}, a value that no training row has")
            columns = (values[:, None] == known).astype(np.float32)
            called += [f"{name}={value}" for value in known.tolist()]
        else:
            advice = f"; if its values are names, add it to categorical=({name!r},), else leave it out of features"
            columns = table.numbers(name, advice).astype(np.float32)[:, None]
            called.append(name)
        if (np.ptp(columns[~is_test], axis=0) == 0).any():
            raise UserError(
                f"{table.at(name, int((~is_test).argmax()))} and all other training rows have one value; a constant "
                "column tells nothing: leave it out of features"
            )
        made.append(columns)
    return np.concatenate(made, axis=1), tuple(called)


def _targets(
    table: Table, names: list[str], kind: str, classes: tuple[str, ...]
) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Targets, their kind, and the names of classes or of columns."""
    if classes and (len(names) > 1 or kind not in ("auto", "classification")):
        raise UserError("classes are given, but the targets are no classes; leave them out, or name one target column")
    if len(names) > 1:
        if kind == "classification":
            raise UserError(f"target has {len(names)} columns, and classification takes one; use multilabel")
        values = np.stack([table.numbers(name) for name in names], axis=1)
        marks = ((values == 0) | (values == 1)).all()
        return values, ("multilabel" if marks else "regression") if kind == "auto" else kind, tuple(names)
    name = names[0]
    if classes:
        return _known_classes(table, name, classes), "classification", classes
    numeric = table.try_numbers(name)
    integral = numeric is not None and bool((np.rint(numeric) == numeric).all())
    whole = integral and table.written_whole(name)
    if kind == "auto":
        kind = "classification" if numeric is None or whole else "regression"
        different = 0 if numeric is None else len(np.unique(numeric))
        if whole and different > max(_MANY, table.num_rows // 2):
            raise UserError(
                f"{table.files[0][0]}: column {name!r} has {different} different whole numbers in "
                f"{table.num_rows} rows; say which they are by target_kind=regression or target_kind=classification"
            )
    if kind == "regression":
        return table.numbers(name), kind, (name,)
    if kind == "multilabel":
        return table.numbers(name)[:, None], kind, (name,)
    if numeric is not None and not integral:
        row = int((np.rint(numeric) != numeric).argmax())
        raise UserError(f"{table.at(name, row)} is {numeric[row]:g}, no class; use target_kind=regression")
    values = table.texts(name).astype(str) if numeric is None else numeric.astype(np.int64)
    found, labels = np.unique(values, return_inverse=True)
    if numeric is not None and not np.array_equal(found, np.arange(len(found))):
        logging.getLogger(__name__).warning(
            "%s: the classes of column %r are %s, numbered from 0 in this order",
            table.files[0][0], name, ", ".join(map(str, found[:10].tolist())) + ", ..." * (len(found) > 10),
        )  # fmt: skip
    return labels.reshape(-1).astype(np.int32), kind, tuple(map(str, found.tolist()))


def _known_classes(table: Table, name: str, classes: tuple[str, ...]) -> np.ndarray:
    """int32 [N]: the place of each value among the classes."""
    values = table.texts(name).astype(str)
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


EXAMPLES = ({"file": "visits.csv", "target": "outcome", "client": "hospital"},)
