"""Mean absolute error."""

import jax.numpy as jnp

from fedjax8.directions import LOWER
from fedjax8.tasks.base import Metric, side_by_side
from fedjax8.types import VALUES, Array


def mae() -> Metric:
    """The mean of |prediction - target| over a row's numbers, in the targets' unit."""
    return Metric("mae", LOWER, (VALUES,), of_row=errors)


def errors(outputs: Array, targets: Array) -> Array:
    """float32 `[B]`."""
    predicted, wanted = side_by_side(outputs, targets)
    return jnp.mean(jnp.abs(predicted - wanted), axis=1)


EXAMPLES = ({},)
