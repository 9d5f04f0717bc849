"""Share of labels that are marked rightly."""

import jax.numpy as jnp

from fedjax8.directions import HIGHER
from fedjax8.tasks.base import Metric, side_by_side
from fedjax8.types import MARKS, Array


def label_accuracy() -> Metric:
    """Share of a row's labels whose output is finite and has the right sign: 1 minus the Hamming loss.

    Where most labels are 0 a model that marks nothing is near 1; look at `macro_f1` beside it.
    """
    return Metric("label_accuracy", HIGHER, (MARKS,), of_row=hits)


def hits(outputs: Array, targets: Array) -> Array:
    """float32 `[B]`."""
    logits, marks = side_by_side(outputs, targets)
    right = ((logits > 0) == (marks > 0.5)) & jnp.isfinite(logits)
    return jnp.mean(right.astype(jnp.float32), axis=1)


EXAMPLES = ({},)
