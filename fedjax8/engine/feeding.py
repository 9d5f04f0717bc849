"""Feeds of clients' rows to the devices: all rows once, or those of the next rounds, prefetched while a call runs.

    resident   every device holds all columns; a batch is a gather inside the training step
    streamed   each call brings the rows of its own clients to the device that trains them, read from columns in memory
               or on disk by a thread, so that reading and copying go on while the device works

`feed` chooses by size. Both give the same rounds, bit for bit: a client's rows are the same, in the same order.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from fedjax8.data.federated import FederatedData
from fedjax8.engine.planning import Plan
from fedjax8.types import Executor, PyTree

HOST_BYTES = 1 << 30
"""Columns up to this size are held by the CPU's devices, all their copies together."""
DEVICE_SHARE = 4
"""On an accelerator columns may take a quarter of the memory; the rest is for training."""
CALL_BYTES = 1 << 25
"""Rows that a call of several rounds may bring to one device: as much as is copied in no time."""
SPARE = 1.25
"""Room for cohorts larger than usual."""
MODES = ("auto", "resident", "streamed")


class Rows(NamedTuple):
    """Places of the clients' rows of a call, and the rows themselves where they are streamed."""

    starts: np.ndarray
    """int32 `[shards, R, c]`: first position of each client's rows."""
    sizes: np.ndarray
    """int32 `[shards, R, c]`."""
    columns: PyTree
    """Leaves `[shards, rows, ...]`, each shard's own; empty where columns are resident."""


class Feed(NamedTuple):
    """A way for rows to reach the device."""

    columns: PyTree
    """Resident columns, leaves `[N, ...]`; empty where rows are streamed."""
    order: PyTree
    """int32 `[M]`, as in `Pool`; None where rows lie client by client."""
    most_rows: int | None
    """Rows of one shard and call, at most; a call of one round may have more."""
    prepare: Callable[[Plan], Rows]
    """The rows of a plan's clients on this process's shards; none for clients that are not waited for."""


def feed(
    data: FederatedData,
    executor: Executor,
    columns: Callable[[], PyTree],
    mode: str,
    rows_a_round: int,
    most_rounds: int,
    check: Callable[[Mapping[str, np.ndarray]], None] | None = None,
) -> Feed:
    """The feed of `data` for this machine.

    Args:
      data: columns and the owner of each row.
      executor: its devices get them.
      columns: gives all columns of `data`, placed on the devices.
      mode: one of `MODES`; ValueError otherwise.
      rows_a_round: rows of a usual cohort on one shard.
      most_rounds: R, the most rounds of a call.
      check: called with rows that are read from disk; raises UserError for those that cannot be used.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}; got {mode!r}")
    size = sum(column.nbytes for column in data.columns.values())
    mapped = any(isinstance(column, np.memmap) for column in data.columns.values())
    if mode == "resident" or (mode == "auto" and not mapped and size <= _room(executor)):
        if check is not None:
            check(data.columns)
        return _resident(data, executor, columns())
    return _streamed(data, executor, rows_a_round, most_rounds, check)


def _room(executor: Executor) -> int:
    """Bytes that resident columns may have on each device."""
    stats = None if jax.default_backend() == "cpu" else jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return stats["bytes_limit"] // DEVICE_SHARE
    return HOST_BYTES // len(executor.shards)


def _resident(data: FederatedData, executor: Executor, columns: PyTree) -> Feed:
    order = None if data.order is None else executor.place(np.asarray(data.order))

    def prepare(plan: Plan) -> Rows:
        starts, sizes = data.windows(plan.training[list(executor.shards)])
        return Rows(starts.astype(np.int32), sizes, {})

    return Feed(columns, order, None, prepare)


def _streamed(
    data: FederatedData,
    executor: Executor,
    rows_a_round: int,
    most_rounds: int,
    check: Callable[[Mapping[str, np.ndarray]], None] | None,
) -> Feed:
    own_shards = list(executor.shards)
    row_bytes = sum(column[:1].nbytes for column in data.columns.values())
    usual = int(SPARE * rows_a_round)
    most_rows = max(usual, min(usual * most_rounds, CALL_BYTES // row_bytes))
    # The buffer has one size from the first call on, since another one is another program; a single round that needs
    # more makes it larger for good.
    held = [_roomy(most_rows)]

    def prepare(plan: Plan) -> Rows:
        sizes = data.windows(plan.training)[1]
        held[0] = rows = max(held[0], _roomy(int(sizes.sum(axis=(1, 2)).max())))
        own = plan.training[own_shards]
        columns = {name: np.zeros((len(own), rows, *c.shape[1:]), c.dtype) for name, c in data.columns.items()}
        starts = np.zeros(own.shape, np.int32)
        for shard, ids in enumerate(own):
            got, new = data.gather(ids.reshape(-1), out={name: column[shard] for name, column in columns.items()})
            if check is not None:
                check(got)
            starts[shard] = new.reshape(ids.shape)
        return Rows(starts, sizes[own_shards], columns)

    return Feed({}, None, held[0], prepare)


def _roomy(rows: int) -> int:
    """The next number of rows in steps of a quarter of a power of two."""
    step = max(1, 1 << max(0, rows.bit_length() - 3))
    return -(-max(rows, 1) // step) * step
