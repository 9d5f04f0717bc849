"""One class of several, by softmax cross-entropy; of a sequence, one at each position."""

from collections.abc import Callable, Sequence

import jax
import optax

from fedjax8.models.linen import cross_entropy, per_row
from fedjax8.tasks.base import Metric, Task, task_of
from fedjax8.tasks.metrics.accuracy import accuracy
from fedjax8.types import CLASSES, Array, Batch


def classification(label_smoothing: float = 0.0, metrics: Sequence[Metric] = ()) -> Task:
    """The task of naming a row's class.

    Args:
      label_smoothing: share of each target that is spread evenly over all classes, from 0 to below 1 (Szegedy et al.
        2016, arXiv 1512.00567, section 7).
      metrics: in place of the usual one, `accuracy`; the first is the main one.
    """
    return task_of("classification", CLASSES, smoothed(label_smoothing), metrics, (accuracy(),))


def smoothed(share: float) -> Callable[[Array, Batch], Array]:
    """Cross-entropy against targets that are smoothed by this share."""
    if not 0 <= share < 1:
        raise ValueError(f"label_smoothing must be from 0 to below 1; got {share}")
    if share == 0:
        return cross_entropy

    def loss(logits: Array, batch: Batch) -> Array:
        """float32 `[B]`."""
        targets = optax.smooth_labels(jax.nn.one_hot(batch["y"], logits.shape[-1]), share)
        return per_row(optax.softmax_cross_entropy(logits.astype("float32"), targets), batch["y"])

    return loss


EXAMPLES = ({}, {"label_smoothing": 0.1})
