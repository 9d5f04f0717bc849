"""Reader of tables by pyarrow: CSV, with every value a text until it is asked for as a number, and Parquet."""

import csv
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.lookup import optional


class Table(NamedTuple):
    """Columns of one or two files, one below the other."""

    columns: dict[str, Any]
    """Name -> pyarrow `ChunkedArray` `[N]`."""
    files: tuple[tuple[Path, int], ...]
    """Each file, and where its rows begin."""

    @property
    def num_rows(self) -> int:
        """N."""
        return len(next(iter(self.columns.values())))

    def at(self, name: str, row: int) -> str:
        """A place, for errors: file, column and row, counted as a spreadsheet does."""
        path, first = next((p, first) for p, first in reversed(self.files) if row >= first)
        is_csv = path.suffix != ".parquet"
        return f"{path}: column {name!r}, row {row - first + 1 + is_csv}{' (the header is row 1)' * is_csv}"

    def numbers(self, name: str, advice: str = "") -> np.ndarray:
        """float64 [N], finite; UserError with the first row that is missing, a text, or not finite."""
        values = self.try_numbers(name)
        if values is not None:
            return values
        column = self.columns[name]
        low, high = 0, len(column)  # rows below `low` are numbers, those below `high` are not all
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _cast(column.slice(low, middle - low)) is not None else (low, middle)
        shown = column[low].as_py()
        raise UserError(f"{self.at(name, low)} is {str(shown)!r:.40}, which is no number{advice}")

    def try_numbers(self, name: str) -> np.ndarray | None:
        """As `numbers`, but None where there is a text."""
        self._check_present(name)
        values = _cast(self.columns[name])
        if values is not None and not np.isfinite(values).all():
            row = int((~np.isfinite(values)).argmax())
            raise UserError(
                f"{self.at(name, row)} is {values[row]}, a missing value or infinite; fill it in or leave it out"
            )
        return values

    def texts(self, name: str) -> np.ndarray:
        """object [N] of texts."""
        arrow = _library("pyarrow")
        self._check_present(name)
        try:
            return self.columns[name].cast(arrow.string()).to_numpy()
        except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError) as error:
            raise UserError(
                f"{self.files[0][0]}: column {name!r} is {self.columns[name].type}; it must hold texts or numbers"
            ) from error

    def ids(self, name: str) -> np.ndarray:
        """[N] client ids: int64 where all are whole numbers, bytes of UUIDs in hexadecimal digits, else texts."""
        arrow, column = _library("pyarrow"), self.columns[name]
        self._check_present(name)
        if arrow.types.is_fixed_size_binary(column.type) or arrow.types.is_binary(column.type):
            return np.array([value.hex() for value in column.to_pylist()])
        if arrow.types.is_floating(column.type):
            values = self.numbers(name)
            return values.astype(np.int64) if (np.rint(values) == values).all() else values
        try:
            whole = column.cast(arrow.int64())
        except (arrow.ArrowInvalid, arrow.ArrowNotImplementedError):
            return self.texts(name).astype(str)
        # "007" and "7" are two clients.
        return whole.to_numpy() if whole.cast(arrow.string()).equals(column.cast(arrow.string())) else self.texts(name)

    def written_whole(self, name: str) -> bool:
        """Whether no number has a point: 1.0 is measured, 1 counted."""
        types, compute, column = _library("pyarrow").types, _library("pyarrow.compute"), self.columns[name]
        if types.is_string(column.type):
            return not compute.any(compute.match_substring_regex(column, "[.eE]")).as_py()
        return types.is_integer(column.type) or types.is_boolean(column.type)

    def _check_present(self, name: str) -> None:
        """UserError naming the first row without a value."""
        column = self.columns[name]
        if column.null_count:
            row = int(column.is_null().to_numpy().argmax())
            raise UserError(f"{self.at(name, row)} has no value; fill it in, or leave such rows or the column out")


def read_table(path: Path, delimiter: str) -> Table:
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
    return Table({name: found.column(i) for i, name in enumerate(names)}, ((path, 0),))


def _header(path: Path, delimiter: str) -> list[str]:
    """Names of the columns of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        return next(csv.reader(lines, delimiter=delimiter), [])


def _check_header(path: Path, names: list[str]) -> None:
    twice = [name for i, name in enumerate(names) if name in names[:i]]
    if twice:
        raise UserError(f"{path}: row 1 names column {twice[0]!r} twice; give each column a name of its own")
    if "" in names or not names:
        raise UserError(f"{path}: row 1 leaves column {names.index('') + 1 if names else 1} without a name")


def one_below_the_other(table: Table, other: Table) -> Table:
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
    return Table(columns, ((path, 0), (below, table.num_rows)))


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


def _library(module: str) -> Any:
    return optional(module, "reading tables", "csv")
