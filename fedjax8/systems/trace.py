"""Measured clients, from a table: CSV, TSV or Parquet, a row for each.

    client,step_seconds,down,up,latency,available,period
    0,0.8,1250000,250000,0.02,0-3600;7200-9000,86400
    1,0.1,5000000,5000000,0.01,,

    client        its number in the run, from 0 up
    step_seconds  of a local step
    speed         in its place: times faster than a device that takes the setting `step_seconds`, or has `flops`
    down, up      bytes a second
    latency       seconds of a message beside its bytes, either way; the column may be left out: 0
    available     intervals of seconds since the start of the run, from and before, in rising order; empty: always.
                  The column may be left out.
    period        seconds after which the intervals repeat; empty or no column: they do not

Rows stand in any order. A client without a row is given one, drawn once for it by the seed. Read by pyarrow
(`pip install 'fedjax8[csv]'`). `fedscale.convert` writes such a table from the device traces of FedScale.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.lookup import suggest
from fedjax8.readers.tables import Table, read_table
from fedjax8.systems._checks import check_seed, check_spread, seconds_of_step
from fedjax8.systems._draws import slowness, uniforms
from fedjax8.systems.base import Speeds, SystemModel

COLUMNS = ("client", "step_seconds", "speed", "down", "up", "latency", "available", "period")
NEEDED = ("client", "down", "up")
LARGEST = 1e30
"""Of a number in a table, within float32."""
_ROW = 3
"""Address of the draw of a row, apart from those of speeds, links and kinds."""
_NUMBER = r"\d+(?:\.\d*)?(?:[eE]\+?\d+)?"
_INTERVAL = re.compile(rf"\s*({_NUMBER})\s*-\s*({_NUMBER})\s*")


class Intervals(NamedTuple):
    """When the clients of `R` rows are there."""

    first: np.ndarray
    """int `[R + 1]`: the intervals of row r are those from `first[r]` to before `first[r + 1]`."""
    begin: np.ndarray
    """float, seconds."""
    end: np.ndarray
    """float, seconds; the moment itself does not belong to it."""
    period: np.ndarray
    """float `[R]`, seconds; infinite where nothing repeats."""

    def contain(self, seconds: float, rows: np.ndarray) -> np.ndarray:
        """bool `[n]`: whether an interval of each of the rows has that moment."""
        moment = np.mod(seconds, self.period[rows])
        first, low, high = self.first[rows], self.first[rows], self.first[rows + 1]
        while np.any(low < high):  # halved until `low` is behind the intervals that begin by then
            middle = (low + high) // 2
            begun = (low < high) & (self.begin[np.minimum(middle, len(self.begin) - 1)] <= moment)
            low, high = np.where(begun, middle + 1, low), np.where(begun, high, middle)
        return (low > first) & (moment < self.end[np.maximum(low - 1, 0)])


@checked
def trace(
    file: str = "",
    step_seconds: float | None = None,
    *,
    flops: float | None = None,
    jitter: float = 0.0,
    seed: int = 0,
    operations: Callable[[], float] | None = None,
) -> SystemModel:
    """The system model of the clients in a table.

    Args:
      file: path of the table.
      step_seconds: of a local step on a device of speed 1, for tables with `speed`; 0.1 unless `flops` is given.
      flops: floating-point operations a second of such a device, in its place; see `same`.
      jitter: standard deviation of the logarithm of a client's slowness in one round.
      seed: of the rows of clients that have none of their own, and of the jitter, apart from the run's seed.
      operations: supplied by the program: gives the operations of a local step.

    Raises:
      UserError: pyarrow is not installed, the table cannot be read, or a column, number or interval is not as said
        above: with the file, the column, the row and what is allowed.
    """
    if not file:
        raise ValueError("file is needed: the path of a table with columns client, step_seconds, down, up")
    check_spread(jitter=jitter)
    check_seed(seed)
    table = read_table(Path(file).expanduser(), "")
    _check_columns(table)
    seconds = _seconds(table, step_seconds, flops, operations)
    down, up = (_numbers(table, name, above=True) for name in ("down", "up"))
    latency = _numbers(table, "latency") if "latency" in table.columns else np.zeros(table.num_rows)
    intervals = _intervals(table) if "available" in table.columns else None
    clients = _clients(table)
    order = np.argsort(clients)
    ranked = clients[order]

    def rows_of(ids: np.ndarray) -> np.ndarray:
        place = np.minimum(np.searchsorted(ranked, ids), len(ranked) - 1)
        drawn = (uniforms(ids, seed, _ROW)[0] * len(ranked)).astype(np.int64)
        return order[np.where(ranked[place] == ids, place, drawn)]

    def speeds(run_seed: int, round_number: int, ids: np.ndarray) -> Speeds:
        rows = rows_of(ids)
        device = slowness(seed, run_seed, round_number, ids, 0.0, jitter)
        return Speeds(seconds[rows] * device, down[rows], up[rows], latency[rows])

    if intervals is None:
        return SystemModel(speeds)
    return SystemModel(speeds, available=lambda seconds, ids: intervals.contain(seconds, rows_of(ids)))


def _check_columns(table: Table) -> None:
    path, names = table.files[0][0], list(table.columns)
    for name in names:
        if name not in COLUMNS:
            allowed = f"allowed are {', '.join(COLUMNS)}"
            raise UserError(f"{path}: row 1 names an unknown column {name!r}; {allowed}{suggest(name, COLUMNS)}")
    for name in NEEDED:
        if name not in names:
            needed = f"needed are {', '.join(NEEDED)}, and step_seconds or speed"
            raise UserError(f"{path}: row 1 has no column {name!r}; {needed}")
    if ("speed" in names) == ("step_seconds" in names):
        raise UserError(f"{path}: row 1 must have one of the columns step_seconds and speed; it has {', '.join(names)}")
    if "period" in names and "available" not in names:
        raise UserError(f"{path}: row 1 has a column 'period' without 'available', whose intervals would repeat")


def _numbers(table: Table, name: str, above: bool = False) -> np.ndarray:
    """float `[R]`: a column of numbers from 0 up, or above 0."""
    values = table.numbers(name)
    bad = (values <= 0 if above else values < 0) | (values > LARGEST)
    if bad.any():
        row = int(bad.argmax())
        allowed = f"a number {'above 0' if above else 'from 0'} up to {LARGEST:g}"
        raise UserError(f"{table.at(name, row)} is {values[row]:g}; it must be {allowed}")
    return values


def _seconds(
    table: Table, step_seconds: float | None, flops: float | None, operations: Callable[[], float] | None
) -> np.ndarray:
    """float `[R]`: seconds of a local step."""
    if "speed" in table.columns:
        return seconds_of_step(step_seconds, flops, operations) / _numbers(table, "speed", above=True)
    if step_seconds is not None or flops is not None:
        advice = "leave the settings step_seconds and flops out, or give the table a column 'speed' instead"
        raise UserError(f"{table.files[0][0]} has a column 'step_seconds'; {advice}")
    return _numbers(table, "step_seconds")


def _clients(table: Table) -> np.ndarray:
    """int64 `[R]`: the numbers of clients, all different."""
    values = _numbers(table, "client")
    broken = values != np.rint(values)
    if broken.any():
        row = int(broken.argmax())
        raise UserError(f"{table.at('client', row)} is {values[row]:g}; it must be a whole number from 0 up")
    clients, first = np.unique(values, return_index=True)
    if len(clients) < len(values):
        row = int(np.setdiff1d(np.arange(len(values)), first)[0])
        raise UserError(f"{table.at('client', row)} is {values[row]:.0f} a second time; give each client one row")
    return values.astype(np.int64)


def _intervals(table: Table) -> Intervals:
    """The columns `available` and `period`."""
    texts = table.columns["available"].to_pylist()
    periods = table.columns["period"].to_pylist() if "period" in table.columns else [None] * len(texts)
    bounds: list[tuple[float, float]] = []
    first, period = [0], np.full(len(texts), np.inf)
    for row, (text, repeats) in enumerate(zip(texts, periods, strict=True)):
        always = text is None or not str(text).strip()
        if repeats is not None and not (always and not str(repeats).strip()):
            period[row] = _period(table, row, repeats)
        bounds += [(0.0, np.inf)] if always else _parsed(table, row, str(text), period[row])
        first.append(len(bounds))
    begin, end = np.array(bounds).T
    return Intervals(np.array(first), begin, end, period)


def _period(table: Table, row: int, given: object) -> float:
    try:
        value = float(str(given))
    except ValueError:
        value = np.nan
    if not 0 < value <= LARGEST:
        raise UserError(f"{table.at('period', row)} is {given!r}; it must be seconds above 0, or empty: no repetition")
    return value


def _parsed(table: Table, row: int, text: str, period: float) -> list[tuple[float, float]]:
    """Intervals of a text such as `0-3600;7200-9000`."""
    where, found, before = table.at("available", row), [], 0.0
    for part in text.split(";"):
        match = _INTERVAL.fullmatch(part)
        if match is None:
            raise UserError(f"{where} is {text!r:.80}; it must be like 0-3600;7200-9000, from and before, in seconds")
        begin, end = float(match[1]), float(match[2])
        if not begin < end:
            raise UserError(f"{where} has {part.strip()!r}; an interval must end after it begins")
        if begin < before:
            rule = "intervals must be in rising order and not overlap"
            raise UserError(f"{where} has {part.strip()!r} after one that ends at {before:g}; {rule}")
        if end > period:
            raise UserError(f"{where} has {part.strip()!r} beyond the period of {period:g} seconds; end it there")
        found.append((begin, end))
        before = end
    return found


EXAMPLES = ()
