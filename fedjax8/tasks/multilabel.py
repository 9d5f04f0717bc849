"""Any number of labels a row, each by a logistic loss of its own."""

from collections.abc import Sequence

import jax.numpy as jnp
import optax

from fedjax8.tasks.base import Metric, Task, side_by_side, task_of
from fedjax8.tasks.metrics.label_accuracy import label_accuracy
from fedjax8.tasks.metrics.macro_f1 import macro_f1
from fedjax8.types import MARKS, Array, Batch


def multilabel(metrics: Sequence[Metric] = ()) -> Task:
    """The task of marking which of L labels a row has, by an output each; the loss is the mean over labels.

    Args:
      metrics: in place of the usual ones, `macro_f1` and `label_accuracy`; the first is the main one.
    """
    return task_of("multilabel", MARKS, loss, metrics, (macro_f1(), label_accuracy()))


def loss(outputs: Array, batch: Batch) -> Array:
    """Mean over labels of the logistic loss; float32 `[B]`."""
    return jnp.mean(optax.sigmoid_binary_cross_entropy(*side_by_side(outputs, batch["y"])), axis=1)


EXAMPLES = ({},)
