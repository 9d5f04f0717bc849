"""Numbers, by squared, absolute or Huber loss."""

import math
from collections.abc import Sequence

import jax.numpy as jnp

from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.tasks.base import Metric, Task, side_by_side, task_of
from fedjax8.tasks.metrics.mae import mae
from fedjax8.tasks.metrics.rmse import rmse
from fedjax8.types import VALUES, Array, Batch

LOSSES = ("squared", "absolute", "huber")


def regression(loss: str = "squared", delta: float = 1.0, metrics: Sequence[Metric] = ()) -> Task:
    """The task of predicting K numbers a row; the loss is the mean over them of a function of the error e.

        squared e^2        absolute |e|        huber e^2 / 2 up to |e| = delta, beyond it delta (|e| - delta / 2)

    Args:
      loss: one of LOSSES.
      delta: of `huber` (Huber 1964), above 0.
      metrics: in place of the usual ones, `mae` and `rmse`; the first is the main one.
    """
    if loss not in LOSSES:
        raise UserError(f"loss is {loss!r}, but must be one of {', '.join(LOSSES)}{suggest(loss, LOSSES)}")
    if not 0 < delta < math.inf:
        raise ValueError(f"delta must be above 0 and finite; got {delta}")
    if delta != 1.0 and loss != "huber":
        raise UserError(f"delta={delta} changes nothing: it is of loss='huber', and loss is {loss!r}")

    def of_rows(outputs: Array, batch: Batch) -> Array:
        """float32 `[B]`."""
        predicted, targets = side_by_side(outputs, batch["y"])
        size = jnp.abs(predicted - targets)
        if loss == "squared":
            return jnp.mean(jnp.square(size), axis=1)
        if loss == "absolute":
            return jnp.mean(size, axis=1)
        inner = jnp.minimum(size, delta)
        return jnp.mean(0.5 * jnp.square(inner) + delta * (size - inner), axis=1)

    return task_of("regression", VALUES, of_rows, metrics, (mae(), rmse()))


EXAMPLES = ({}, {"loss": "huber", "delta": 0.5})
