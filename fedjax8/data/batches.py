"""A client's batches, cut on the device: shuffled epochs of rows that are gathered, masked and never copied per client.

This is step work and therefore JAX, unlike the rest of `data/`. All columns lie on the device once, as they came
(images as uint8). A client is a range of `Pool.order`; a batch is a gather by index inside the training step. Clients
of different size run the same program: a client of n examples takes ceil(n / B) steps an epoch, and the last batch is
masked.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.types import Array, Batch, Key


class Pool(NamedTuple):
    """All rows of a data set and whose they are, on the device.

    `columns` leaves `[N, ...]`; `order` int32 `[M]`: row numbers, those of one client side by side.
    """

    columns: dict[str, Array]
    order: Array


class ClientRows(NamedTuple):
    """One client's view of the pool: rows `order[start : start + size]`. `start` and `size` are int32 scalars."""

    pool: Pool
    start: Array
    size: Array


class BatchPlan(NamedTuple):
    """How clients cut their rows into local steps. Static: Python ints.

    Give `epochs`, or `steps` to take the same number of steps on every client whatever its size (epochs are then begun
    anew as often as needed).
    """

    batch_size: int
    max_size: int
    """Examples of the largest client: the padded length of a shuffled epoch."""
    max_epochs: int
    """Shuffles that the longest training needs."""
    steps: int | None
    """Fixed number of steps, or None for whole epochs."""

    @property
    def padded_size(self) -> int:
        """`max_size` rounded up to whole batches."""
        return math.ceil(self.max_size / self.batch_size) * self.batch_size


def batch_plan(sizes: np.ndarray, batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> BatchPlan:
    """The plan that serves clients of these `sizes` (int `[K]`).

    Raises ValueError unless one of epochs, steps is given.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    length = epochs if steps is None else steps
    if (epochs is None) == (steps is None) or length < 1:
        raise ValueError(f"give one of epochs, steps, at least 1: got epochs={epochs}, steps={steps}")
    if steps is not None:
        smallest = max(int(np.min(sizes, initial=np.iinfo(np.int32).max, where=np.asarray(sizes) > 0)), 1)
        epochs = math.ceil(steps / math.ceil(smallest / batch_size))
    return BatchPlan(batch_size, max(int(np.max(sizes, initial=0)), 1), epochs, steps)


def num_steps(plan: BatchPlan, size: Array | np.ndarray) -> Array:
    """int32 number of local steps of a client of `size` examples; 0 for an empty client. Also on NumPy arrays."""
    per_epoch = (size + plan.batch_size - 1) // plan.batch_size
    if plan.steps is None:
        return per_epoch * plan.max_epochs
    return plan.steps * (size > 0)


def shuffled_epochs(plan: BatchPlan, size: Array, key: Key) -> Array:
    """int32 `[max_epochs, padded_size]`: each row a random order of 0 .. size - 1, then positions past the end."""
    bits = jax.random.bits(key, (plan.max_epochs, plan.padded_size), jnp.uint32) >> 1
    inside = jnp.arange(plan.padded_size) < size
    return jnp.argsort(jnp.where(inside, bits, jnp.uint32(0xFFFFFFFF)), axis=1).astype(jnp.int32)


def take_batch(plan: BatchPlan, rows: ClientRows, orders: Array, step: Array) -> Batch:
    """Batch number `step` of a client, columns `[B, ...]` and `mask` float32 `[B]`. `orders` from `shuffled_epochs`."""
    per_epoch = jnp.maximum((rows.size + plan.batch_size - 1) // plan.batch_size, 1)
    first = (step % per_epoch) * plan.batch_size
    place = jax.lax.dynamic_slice(orders, (step // per_epoch, first), (1, plan.batch_size))[0]
    mask = first + jnp.arange(plan.batch_size) < rows.size
    index = rows.pool.order[rows.start + jnp.where(mask, place, 0)]
    batch = {name: column[index] for name, column in rows.pool.columns.items()}
    return batch | {"mask": mask.astype(jnp.float32)}
