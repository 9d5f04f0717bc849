"""A data set, and the same data seen as clients.

A source returns a `Dataset`. A partition gives every training row an owner, and
`FederatedData.from_owners` turns that into clients: row numbers grouped by client, with a start and a size
for each. Clients are windows into one row order, so millions of them can share one pool of rows at twelve
bytes a client; a partition may also give the windows themselves. Where rows lie client by client, as in a
folder opened by `storage.open_federated`, there is no order to keep.
"""

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax8.data.checks import (
    check_columns,
    check_finite,
    check_label_shape,
    check_labels,
    check_representable,
    check_windows,
    common_length,
    kind_of,
)
from fedjax8.data.names import check_names, names_after_split, shown
from fedjax8.display import Facts, columns_of, shows
from fedjax8.errors import UserError
from fedjax8.given import checked

_SPLIT_STREAM = 1
_CLIENTS_AT_ONCE = 1 << 20  # bounds the temporaries of a check to 8 MB
_GATHER_BYTES = 1 << 26  # of rows that are held twice while they are read in another order


class Windows(NamedTuple):
    """Clients as windows into one row order: the fields of `FederatedData` that give rows their owners."""

    order: np.ndarray | None  # [M] int32 row numbers; None for rows client by client
    starts: np.ndarray  # [K] int64
    sizes: np.ndarray  # [K] int32
    names: np.ndarray | None = None  # [K] bytes


@shows
class Dataset(NamedTuple):
    """Training and test rows of one data set, with their normalization and number of classes.

    A row has one label, or, as a sequence [T, ...], a label at each of its T positions. The row is the unit:
    its loss and its accuracy are means over its labels that are not `NO_TARGET`. Targets that are no class numbers are
    float32 numbers, or a 0 or 1 for each of L labels; `num_classes` is None then.

    Invariants (`validate` checks them): the columns of a part have equal length, at least one row; `y` is
    int32 [N] with values in [0, num_classes), or int32 [N, T] for x [N, T, ...] with `NO_TARGET` as another value
    but not the only one of a row; without classes float32 [N] or [N, K], or uint8 [N, L] of 0 and 1; rows of `train`
    and `test` have the same shape; owners are non-negative.
    """

    train: Mapping[str, np.ndarray]  # x [N, ...] uint8, float32 or int32, perhaps memory-mapped; y as above
    test: Mapping[str, np.ndarray]
    num_classes: int | None
    mean: tuple[float, ...]  # per channel, of x / 255 where x is uint8, else of x
    std: tuple[float, ...]
    name: str
    owners: np.ndarray | None = None  # [N] int32: the natural client of each training row
    test_owners: np.ndarray | None = None
    clients: Windows | None = None  # natural clients as windows, instead of an owner for each of too many rows
    constants: tuple[str, ...] = ()  # which of "mean" (with std) and "num_classes" were not read off the training rows
    client_names: np.ndarray | None = None  # [largest owner + 1] bytes: ids of natural clients as the data has them
    class_names: tuple[str, ...] = ()  # by number; empty where the data has none
    feature_names: tuple[str, ...] = ()  # of the columns of x [N, F], in their order; empty where the data has none
    learned: tuple[str, ...] = ()  # what else was read off the training rows, such as "the values of column 'city'"
    test_clients: Windows | None = None  # of the test rows, as `clients`; a natural client has one name in both

    def _facts(self) -> Facts:
        facts = {
            "": self.name,
            "train": columns_of(self.train),
            "test": columns_of(self.test),
            "classes": self.num_classes,
        }
        return facts | {"natural_clients": self.num_natural_clients or None}

    @property
    def num_natural_clients(self) -> int:
        """Number of natural clients that own training rows; 0 where the set has none."""
        if self.clients is not None:
            return len(self.clients.starts)
        return 0 if self.owners is None else len(np.unique(self.owners))

    def validate(self, *, read_mapped: bool = True) -> "Dataset":
        """The data set itself, or a `UserError` that names the first invariant broken.

        Without `read_mapped` the values of columns on disk are not read.
        """
        for part, columns, owners in (
            ("train", self.train, self.owners),
            ("test", self.test, self.test_owners),
        ):
            where = f"{self.name}: {part}"
            check_columns(columns, where)
            missing = {"x", "y"} - set(columns)
            if missing:
                raise UserError(f"{where} has no column {sorted(missing)}; it needs x and y")
            rows = common_length(columns, where)
            if rows == 0:
                raise UserError(f"{where} is empty; it needs at least one row")
            check_label_shape(columns["x"], columns["y"], self.num_classes, where)
            read = {name: c for name, c in columns.items() if read_mapped or not isinstance(c, np.memmap)}
            if "y" in read:
                check_labels(columns["y"], self.num_classes, where)
            check_finite(read, where)
            if owners is not None and not isinstance(owners, np.ndarray):
                raise UserError(f"{where} owners are {kind_of(owners)}; they must be a NumPy array of integers from 0")
            if owners is not None and (owners.shape != (rows,) or owners.dtype.kind not in "iu" or owners.min() < 0):
                raise UserError(
                    f"{where} owners are {owners.dtype} {owners.shape}; they must be [{rows}] integers from 0"
                )
        if self.train["x"].shape[1:] != self.test["x"].shape[1:]:
            raise UserError(
                f"{self.name}: train rows have shape {self.train['x'].shape[1:]} but test rows "
                f"{self.test['x'].shape[1:]}; they must agree"
            )
        if self.train["x"].dtype != self.test["x"].dtype:
            raise UserError(
                f"{self.name}: train rows are {self.train['x'].dtype} but test rows {self.test['x'].dtype}, which are "
                "scaled differently; they must agree"
            )
        if self.train["y"].ndim != self.test["y"].ndim:
            raise UserError(f"{self.name}: only one of train and test has a label for each position; both must or none")
        if self.num_classes is None and self.train["y"].shape[1:] != self.test["y"].shape[1:]:
            raise UserError(
                f"{self.name}: train has {self.train['y'].shape[1]} targets a row, but test {self.test['y'].shape[1]}; "
                "they must agree"
            )
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise UserError(f"{self.name}: mean {self.mean} and std {self.std} must pair up, with std above 0")
        if not np.isfinite([*self.mean, *self.std]).all():
            raise UserError(f"{self.name}: mean {self.mean} and std {self.std} must be finite numbers")
        return self


@shows
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class FederatedData:
    """Rows grouped by client: client c owns rows `order[starts[c] : starts[c] + sizes[c]]` of every column.

    Without an `order`, rows lie client by client: client c owns rows `starts[c] : starts[c] + sizes[c]`.

    Checked when made: columns have equal length, `order` holds valid row numbers, every window lies inside
    `order`. Windows may overlap (clients that share rows) and may be empty. `checked=True` skips the
    checks that would read `order`, `starts` and `sizes` from end to end.
    """

    columns: Mapping[str, np.ndarray]  # name -> [N, ...]
    order: np.ndarray | None  # [M] int32 row numbers
    starts: np.ndarray  # [K] int64 positions in order
    sizes: np.ndarray  # [K] int32
    checked: dataclasses.InitVar[bool] = False
    names: np.ndarray | None = None  # [K] bytes in UTF-8: ids of the clients in the data (`data.names`)

    def __post_init__(self, checked: bool) -> None:
        """Raises `UserError` for the first thing that does not fit."""
        check_columns(self.columns, "columns")
        rows = common_length(self.columns, "columns", numbered=self.order is not None)
        check_representable({n: c for n, c in self.columns.items() if not isinstance(c, np.memmap)}, "columns")
        for name, array, dtype in (
            ("order", self.order, np.int32),
            ("starts", self.starts, np.int64),
            ("sizes", self.sizes, np.int32),
        ):
            if array is not None and not isinstance(array, np.ndarray):
                raise UserError(f"{name} is {kind_of(array)}; it must be a NumPy array of {np.dtype(dtype)}")
            if array is not None and (array.ndim != 1 or array.dtype != dtype):
                raise UserError(f"{name} is {array.dtype} {array.shape}; it must be one-dimensional {np.dtype(dtype)}")
        if len(self.starts) != len(self.sizes) or len(self.starts) == 0:
            raise UserError(
                f"{len(self.starts)} starts and {len(self.sizes)} sizes; both must count the clients, at least one"
            )
        if self.names is not None:
            check_names(self.names, self.num_clients)
        if checked:
            return
        if self.order is not None and len(self.order) and (self.order.min() < 0 or self.order.max() >= rows):
            raise UserError(f"order holds rows {self.order.min()} to {self.order.max()}; the columns have {rows}")
        for first in range(0, self.num_clients, _CLIENTS_AT_ONCE):
            block = slice(first, first + _CLIENTS_AT_ONCE)
            what = "rows" if self.order is None else "entries of order"
            check_windows(self.starts[block], self.sizes[block], self.num_positions, what)

    @classmethod
    def from_owners(
        cls,
        columns: Mapping[str, np.ndarray],
        owners: np.ndarray,
        num_clients: int,
        names: np.ndarray | None = None,
    ) -> "FederatedData":
        """Clients 0 to num_clients - 1, each with the rows that name it as owner, in their original order.

        Args:
            columns: name -> [N, ...].
            owners: [N] integers in [-1, num_clients); -1 leaves the row out.
            num_clients: K, at least 1; a client may end up empty.
            names: [K] bytes, from `data.names.packed`; None for clients without names.
        """
        rows, owners = common_length(columns, "columns"), np.asarray(owners)
        if owners.shape != (rows,) or owners.dtype.kind not in "iu":
            raise UserError(f"owners are {owners.dtype} {owners.shape}; they must be [{rows}] integers, one per row")
        if num_clients < 1:
            raise UserError(f"num_clients is {num_clients}; it must be at least 1")
        if owners.min(initial=0) < -1 or owners.max(initial=-1) >= num_clients:
            raise UserError(
                f"owners run from {owners.min()} to {owners.max()}; {num_clients} clients allow "
                f"-1 (unused) to {num_clients - 1}"
            )
        order = np.argsort(owners, kind="stable").astype(np.int32)
        order = order[np.count_nonzero(owners == -1) :]
        sizes = np.bincount(owners[order], minlength=num_clients)
        return cls(columns, order, np.cumsum(sizes, dtype=np.int64) - sizes, sizes.astype(np.int32), names=names)

    def _facts(self) -> Facts:
        some = self.sizes[:_CLIENTS_AT_ONCE]
        sizes = f"{some.min():,} to {some.max():,}" if len(some) == len(self.sizes) else None
        return {"clients": self.num_clients, "rows_of_a_client": sizes, "columns": columns_of(self.columns)}

    @property
    def num_clients(self) -> int:
        """K, the number of clients."""
        return len(self.starts)

    def named(self, ids: np.ndarray) -> Sequence[str]:
        """Names of clients `ids`; their numbers as texts where the data names none."""
        return shown(self.names, np.asarray(ids))

    @property
    def num_examples(self) -> int:
        """Sum of the client sizes; a row that several clients share counts once for each."""
        return int(self.sizes.sum(dtype=np.int64))

    @property
    def num_positions(self) -> int:
        """M: entries of `order`, or rows where there is none."""
        return len(next(iter(self.columns.values()))) if self.order is None else len(self.order)

    def rows_at(self, positions: np.ndarray) -> np.ndarray:
        """Row numbers at `positions`, integers in [0, num_positions): `order[positions]` where there is an order."""
        return np.asarray(positions) if self.order is None else self.order[positions]

    def windows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(starts [n] int64, sizes [n] int32)` of clients `ids` `[n]`, in time and memory of n.

        Ids outside 0 .. K - 1 are padding: an empty window at 0.
        """
        ids = np.asarray(ids)
        real = (ids >= 0) & (ids < self.num_clients)
        inside = np.where(real, ids, 0)
        return np.where(real, self.starts[inside], 0), np.where(real, self.sizes[inside], np.int32(0))

    def gather(
        self, ids: np.ndarray, out: Mapping[str, np.ndarray] | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Copies of the rows of clients `ids` `[n]`, one client after another.

        Only these rows are read; from columns on disk in the order in which they lie there.

        Args:
            ids: those outside 0 .. K - 1 are padding, without rows.
            out: name -> [at least the sum of sizes, ...], arrays to write to, such as those of an earlier call.

        Returns:
            Columns, name -> [sum of sizes, ...], the beginning of those in `out` if given; and `[n]` int64, where each
            client's rows start in them.

        Raises:
            ValueError: `out` lacks a column, or one is too short or of another dtype or row shape.
        """
        starts, sizes = self.windows(ids)
        ends = np.cumsum(sizes, dtype=np.int64)
        new_starts, total = ends - sizes, int(ends[-1]) if len(ends) else 0
        gathered = {name: _room(name, column, total, out) for name, column in self.columns.items()}
        if self.order is None:
            by_place = [(int(starts[i]), int(new_starts[i]), int(sizes[i])) for i in np.argsort(starts, kind="stable")]
            for name, column in self.columns.items():
                into = gathered[name]
                for start, new_start, size in by_place:
                    into[new_start : new_start + size] = column[start : start + size]
        else:
            rows = self.order[np.repeat(starts - new_starts, sizes) + np.arange(total)]
            for name, column in self.columns.items():
                _take_rows(column, rows, gathered[name])
        return gathered, new_starts

    def rows(self, client: int) -> np.ndarray:
        """[size] row numbers of one client, int64 where there is no order, else int32;

        IndexError unless 0 <= client < num_clients.
        """
        client = operator.index(client)
        if not 0 <= client < self.num_clients:
            raise IndexError(f"client {client} of {self.num_clients}")
        start = int(self.starts[client])
        return self.rows_at(np.arange(start, start + int(self.sizes[client])))

    def client(self, client: int) -> dict[str, np.ndarray]:
        """One client's columns, name -> [size, ...], copied."""
        rows = self.rows(client)
        return {name: column[rows] for name, column in self.columns.items()}

    def select(self, clients: np.ndarray) -> "FederatedData":
        """The listed clients only, in that order, over the same columns."""
        names = None if self.names is None else self.names[clients]
        return dataclasses.replace(
            self, starts=self.starts[clients], sizes=self.sizes[clients], names=names, checked=True
        )

    def label_counts(self, num_classes: int) -> np.ndarray:
        """[K, num_classes] int32: rows of each class in column `y` by client.

        Running totals along `order` make this cost (M + K) per class, however much the clients overlap.
        """
        labels = np.asarray(self.columns["y"] if self.order is None else self.columns["y"][self.order])
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise UserError(
                f"labels are {labels.dtype} with rows of shape {labels.shape[1:]}; counting needs one integer per row "
                "(label sequences have no class to count; look at the sizes instead)"
            )
        if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
            raise UserError(f"labels run from {labels.min()} to {labels.max()}; num_classes is {num_classes}")
        counts = np.empty((self.num_clients, num_classes), np.int32)
        running, ends = np.zeros(len(labels) + 1, np.int32), self.starts + self.sizes
        for label in range(num_classes):
            np.cumsum(labels == label, dtype=np.int32, out=running[1:])
            counts[:, label] = running[ends] - running[self.starts]
        return counts


@checked
def federate(dataset: Dataset, split: Callable, num_clients: int, seed: int = 0) -> FederatedData:
    """The training rows of `dataset` as `num_clients` clients, by a `split` such as `dirichlet(0.3)`;

    same seed, same clients. A split gives owners or `Windows`. UserError where the data set is not valid, or an
    argument of another type.
    """
    dataset.validate(read_mapped=False)
    rng = np.random.default_rng([seed, _SPLIT_STREAM])
    made = split(rng, dataset, num_clients)
    if isinstance(made, Windows):
        return FederatedData(dataset.train, made.order, made.starts, made.sizes, names=made.names)
    names = names_after_split(dataset.client_names, dataset.owners, np.asarray(made), num_clients)
    return FederatedData.from_owners(dataset.train, made, num_clients, names)


def match_test_owners(dataset: Dataset, owners: np.ndarray) -> np.ndarray:
    """[N_test] int32: the client of each test row when training rows are owned as in `owners`; -1 where none.

    For splits along natural clients (`by_key`, also of a subset): a test row goes where its natural client's
    training rows went. UserError where the set has no natural clients, or one natural client's rows went to
    several.
    """
    if dataset.owners is None or dataset.test_owners is None:
        raise UserError(
            f"{dataset.name} does not name the natural client of each train and test row; "
            "per-client test sets need that"
        )
    client_of = np.full(int(max(dataset.owners.max(), dataset.test_owners.max())) + 1, -1, np.int32)
    used = owners >= 0  # others, such as validation rows, are nobody's
    client_of[dataset.owners[used]] = owners[used]
    if not np.array_equal(client_of[dataset.owners[used]], owners[used]):
        raise UserError(
            f"the split of {dataset.name} spreads natural clients over several clients; per-client test "
            "sets need the by_key partition"
        )
    return client_of[dataset.test_owners]


def _room(name: str, column: np.ndarray, rows: int, out: Mapping[str, np.ndarray] | None) -> np.ndarray:
    """[rows, ...]: the beginning of `out[name]`, or new."""
    if out is None:
        return np.empty((rows, *column.shape[1:]), column.dtype)
    given = out.get(name)
    if given is None or len(given) < rows or given.shape[1:] != column.shape[1:] or given.dtype != column.dtype:
        found = "missing" if given is None else f"{given.dtype} {given.shape}"
        raise ValueError(f"out[{name!r}] is {found}; it must be {column.dtype} [{rows} or more, *{column.shape[1:]}]")
    return given[:rows]


def _take_rows(column: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
    """`out[:] = column[rows]`; from disk in ascending order of rows."""
    if not isinstance(column, np.memmap):
        np.take(column, rows, axis=0, out=out, mode="clip")  # any mode but the default writes to `out` directly
        return
    ascending = np.argsort(rows, kind="stable")
    rows_at_once = max(1, _GATHER_BYTES * len(column) // max(column.nbytes, 1))
    for first in range(0, len(rows), rows_at_once):
        places = ascending[first : first + rows_at_once]
        out[places] = column[rows[places]]
