"""Stores of clients' states between rounds (SCAFFOLD's variates, error feedback), for up to millions of clients.

Three stores with the same methods; `client_states` chooses:

    NoStates      clients remember nothing
    DeviceStates  all states side by side on the device, leaves [K, ...]
    DiskStates    one row per client in a sparse file (`disk_states.py`)

    read(ids)           -> states of these clients, leaves [n, ...]
    write(ids, rows)    -> the store to go on with; `donate=True` gives up this one, so that nothing is copied
    arrays()            -> arrays that a checkpoint must hold
    with_arrays(arrays) -> the store with the arrays of a checkpoint
    mark(round)            the state after `round` rounds is complete, and its checkpoint comes next
    release(round)         no checkpoint before that of `round` is kept any more
    rewind(round)          back to the mark of `round`, after its checkpoint was read

A store too large to be copied into every checkpoint keeps an undo log instead (`undo_log.py`). For that, `mark` stands
*before* the checkpoint of the same round, and goes after that checkpoint did: whichever checkpoint a run then goes on
from, and however many could not be written, there is a mark for it.
"""

import copy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.engine.states.disk_states import DiskStates, check_rows
from fedjax8.types import PyTree


def client_states(
    initial: PyTree, num_clients: int, *, folder: Path | None = None, limit_bytes: int = 1 << 30
) -> "NoStates | DeviceStates | DiskStates":
    """The store for `num_clients` states that all begin as `initial`.

    Args:
      initial: one client's state; leaves of any shape and dtype.
      num_clients: K.
      folder: where states on disk go, and where those of an interrupted run are found; None for a temporary directory
        that goes with the store. Not made unless it is needed.
      limit_bytes: states of all clients up to this size are held on the device.

    Raises:
      UserError: the folder holds something else, or states of another number, shape or dtype, or cannot be written.
    """
    initial = jax.tree.map(jnp.asarray, initial)
    if not jax.tree.leaves(initial):
        return NoStates(initial)
    if num_clients * trees.num_bytes(initial) <= limit_bytes:
        return DeviceStates(initial, num_clients)
    return DiskStates(initial, num_clients, folder)


class NoStates:
    """The store of clients that remember nothing."""

    def __init__(self, initial: PyTree):
        self._initial = initial

    def read(self, ids: np.ndarray) -> PyTree:
        """A tree without leaves."""
        return self._initial

    def write(self, ids: np.ndarray, rows: PyTree, donate: bool = False) -> "NoStates":
        """The same store."""
        return self

    def arrays(self) -> PyTree:
        """A tree without leaves."""
        return self._initial

    def with_arrays(self, arrays: PyTree) -> "NoStates":
        """The same store."""
        return self

    def mark(self, round_number: int) -> None:
        """Nothing to do."""

    def release(self, oldest: int) -> None:
        """Nothing to do."""

    def rewind(self, round_number: int) -> None:
        """Nothing to do."""


def _to_where(row: jax.Array, array: jax.Array) -> jax.Array:
    """`row` on the device of `array`. Left alone if it lies there: arrays put somewhere by name ("committed") are
    another kind of argument to compiled programs, which would be compiled anew in the second and third call."""
    return row if getattr(row, "sharding", None) == array.sharding else jax.device_put(row, array.sharding)


class DeviceStates:
    """All states on one device, leaves `[K, ...]`; checkpoints hold them whole.

    Floats of less than 32 bits are held as integers of the same bits: on CPU, XLA would convert all K rows to float32
    and back to write one.
    """

    def __init__(self, initial: PyTree, num_clients: int):
        self._initial = initial
        self._arrays = jax.tree.map(
            lambda x: jnp.tile(x[None], (num_clients,) + (1,) * x.ndim), jax.tree.map(_to_bits, initial)
        )

    def read(self, ids: np.ndarray) -> PyTree:
        """States of clients `ids` `[n]`, leaves `[n, ...]` on the device; the initial state outside 0 .. K - 1."""
        return _gather(self._arrays, self._initial, np.asarray(ids, np.int32))

    def write(self, ids: np.ndarray, rows: PyTree, donate: bool = False) -> "DeviceStates":
        """The store in which clients `ids` `[n]`, all different, have the states `rows`, leaves `[n, ...]`.

        Ids outside 0 .. K - 1 are padding and ignored. With `donate` this store's memory goes to the new one, so that
        nothing is copied; used again, this one raises JAX's error about a deleted array.
        """
        jax.tree.map(check_rows, rows, self._initial)
        moved = jax.tree.map(_to_where, rows, self._arrays)
        scatter = _scatter_in_place if donate else _scatter
        return self._with(scatter(self._arrays, np.asarray(ids, np.int32), moved))

    def arrays(self) -> PyTree:
        """All states, leaves `[K, ...]`, small floats as integers; valid until they are donated."""
        return self._arrays

    def with_arrays(self, arrays: PyTree) -> "DeviceStates":
        """The store with the `arrays` of one like it, copied to the device."""
        return self._with(jax.tree.map(lambda new, old: jnp.array(new, old.dtype), arrays, self._arrays))

    def mark(self, round_number: int) -> None:
        """Nothing to do: checkpoints hold the arrays."""

    def release(self, oldest: int) -> None:
        """Nothing to do."""

    def rewind(self, round_number: int) -> None:
        """Nothing to do: `with_arrays` did it."""

    def _with(self, arrays: PyTree) -> "DeviceStates":
        other = copy.copy(self)
        other._arrays = arrays
        return other


@jax.jit
def _gather(arrays: PyTree, initial: PyTree, ids: jax.Array) -> PyTree:
    def of_leaf(array, first):
        real = (ids >= 0) & (ids < len(array))
        rows = array[jnp.where(real, ids, 0)]
        rows = rows if rows.dtype == first.dtype else jax.lax.bitcast_convert_type(rows, first.dtype)
        return jnp.where(real.reshape(-1, *(1,) * first.ndim), rows, first)

    return jax.tree.map(of_leaf, arrays, initial)


@jax.jit
def _scatter(arrays: PyTree, ids: jax.Array, rows: PyTree) -> PyTree:
    def of_leaf(array, new):
        # A negative index would count from the end; one beyond the end is dropped.
        return array.at[jnp.where(ids < 0, len(array), ids)].set(_to_bits(new), mode="drop")

    return jax.tree.map(of_leaf, arrays, rows)


_scatter_in_place = jax.jit(_scatter, donate_argnums=0)


def _to_bits(array: jax.Array) -> jax.Array:
    bits = jnp.finfo(array.dtype).bits if jnp.issubdtype(array.dtype, jnp.floating) else 32
    return array if bits >= 32 else jax.lax.bitcast_convert_type(array, f"uint{bits}")


ClientStates = NoStates | DeviceStates | DiskStates
