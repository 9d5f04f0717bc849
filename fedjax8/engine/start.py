"""Rows that a model is initialized on and its input clips calibrated, outside the byte count of a run."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.data.drawn import drawn_rows
from fedjax8.data.federated import FederatedData

CALIBRATION_ROWS = 256
"""Rows of the batch that a model is initialized on."""


def start_batch(data: FederatedData, sample: Mapping[str, np.ndarray] | None, private: bool) -> dict[str, jax.Array]:
    """The rows of `sample`; without them some training rows, or where these are private, rows that are drawn."""
    if sample is None and not private:
        return sample_batch(data)
    return as_batch(drawn_rows(data.columns, CALIBRATION_ROWS) if sample is None else sample)


def sample_batch(data: FederatedData, rows: int = CALIBRATION_ROWS) -> dict[str, jax.Array]:
    """A batch of up to `rows` training rows, evenly spaced over all clients' rows."""
    positions = data.num_positions
    places = data.rows_at(np.linspace(0, positions - 1, min(rows, positions)).astype(np.int64))
    return as_batch({name: column[places] for name, column in data.columns.items()})


def as_batch(rows: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Rows as a batch without padding."""
    length = len(next(iter(rows.values())))
    return {name: jnp.asarray(column) for name, column in rows.items()} | {"mask": jnp.ones(length, jnp.float32)}
