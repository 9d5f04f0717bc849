"""Root of the mean squared error."""

import jax.numpy as jnp
import numpy as np

from fedjax8.directions import LOWER
from fedjax8.tasks.base import Metric, side_by_side
from fedjax8.types import VALUES, Array, PyTree, SetMetric


def rmse() -> Metric:
    """The root of the mean over rows and their numbers of (prediction - target)^2, in the targets' unit.

    Infinite where a square is beyond float32, from errors of 1.8e19.
    """
    return Metric("rmse", LOWER, (VALUES,), of_set=SetMetric(_sums, _value))


def _sums(outputs: Array, targets: Array, mask: Array) -> PyTree:
    """Sum over rows of a row's mean square float32, and their number int32."""
    predicted, wanted = side_by_side(outputs, targets)
    squares = jnp.mean(jnp.square(predicted - wanted), axis=1)
    return {"squares": jnp.sum(jnp.where(mask > 0, squares, 0.0)), "rows": jnp.sum((mask > 0).astype(jnp.int32))}


def _value(state: PyTree) -> float:
    return float(np.sqrt(np.float64(state["squares"]) / max(int(state["rows"]), 1)))


EXAMPLES = ({},)
