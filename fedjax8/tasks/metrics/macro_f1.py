"""F1 score of each class or label, averaged over them."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.directions import HIGHER
from fedjax8.tasks.base import Metric, of_targets
from fedjax8.types import CLASSES, MARKS, Array, PyTree, SetMetric


def macro_f1() -> Metric:
    """The mean over classes of 2 TP / (predicted + actual), rows of a set counted for each class.

    Of classes: over those that occur, among targets or predictions. Of labels: over all, one that is
    neither a target nor predicted counting 0. Both as scikit-learn's `f1_score(average="macro", zero_division=0)`.
    Outputs that are not finite name nothing.
    """
    return Metric("macro_f1", HIGHER, (CLASSES, MARKS), of_set=SetMetric(_counts, _value))


def _counts(outputs: Array, targets: Array, mask: Array) -> PyTree:
    """int32 `[C]` each: rows that are of a class and named so, named so, of it; and whether all labels count."""
    marks = targets.ndim == 2 and outputs.ndim == 2
    if marks:
        named, actual, real = (outputs > 0) & jnp.isfinite(outputs), targets > 0, mask[:, None] > 0
    else:
        labels = targets.reshape(-1)
        logits, classes = outputs.reshape(len(labels), -1), outputs.shape[-1]
        sure = jnp.isfinite(jnp.max(logits, axis=1, keepdims=True))
        named = (jax.nn.one_hot(jnp.argmax(logits, axis=1), classes) > 0) & sure
        actual, real = jax.nn.one_hot(labels, classes) > 0, of_targets(mask, targets)[:, None]
    count = lambda which: jnp.sum((which & real).astype(jnp.int32), axis=0)
    return {"both": count(named & actual), "named": count(named), "actual": count(actual), "all": jnp.int32(marks)}


def _value(state: PyTree) -> float:
    either = np.asarray(state["named"], np.int64) + state["actual"]
    scores = 2 * np.asarray(state["both"], np.int64) / np.maximum(either, 1)
    counted = scores if state["all"] else scores[either > 0]
    return float(np.mean(counted)) if len(counted) else float("nan")


EXAMPLES = ({},)
