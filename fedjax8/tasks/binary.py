"""Yes or no, by one output and logistic loss."""

import math
from collections.abc import Sequence

import jax

from fedjax8.tasks.base import Metric, Task, side_by_side, task_of
from fedjax8.tasks.metrics.accuracy import accuracy
from fedjax8.types import BINARY, Array, Batch


def binary(positive_weight: float = 1.0, metrics: Sequence[Metric] = ()) -> Task:
    """The task of telling rows of target 1 from those of target 0, by one output z, the logit of 1.

        loss = w y ln(1 + exp(-z)) + (1 - y) ln(1 + exp(z))

    Args:
      positive_weight: w, of rows with target 1, above 0.
      metrics: in place of the usual one, `accuracy`; the first is the main one.
    """
    if not 0 < positive_weight < math.inf:
        raise ValueError(f"positive_weight must be above 0 and finite; got {positive_weight}")

    def loss(outputs: Array, batch: Batch) -> Array:
        """float32 `[B]`."""
        logits, targets = side_by_side(outputs, batch["y"])
        positive, negative = jax.nn.softplus(-logits[:, 0]), jax.nn.softplus(logits[:, 0])
        return positive_weight * targets[:, 0] * positive + (1 - targets[:, 0]) * negative

    return task_of("binary", BINARY, loss, metrics, (accuracy(),))


EXAMPLES = ({}, {"positive_weight": 3.0})
