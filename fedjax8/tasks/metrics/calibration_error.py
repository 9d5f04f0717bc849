"""Expected calibration error: how far confidence is from accuracy."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.directions import LOWER
from fedjax8.tasks.base import Metric, of_targets
from fedjax8.types import CLASSES, Array, PyTree, SetMetric


def calibration_error(bins: int = 15) -> Metric:
    """The mean over rows of |accuracy - confidence| of their bin (Guo et al. 2017, arXiv 1706.04599, section 2).

    Confidence is the largest probability; `bins` equal intervals (i / bins, (i + 1) / bins] divide it. Of sequences the
    positions count like rows.

    Args:
      bins: at least 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")

    def state(outputs: Array, targets: Array, mask: Array) -> PyTree:
        """Of each bin: rows int32, those named rightly int32, and the sum of confidences float32; `[bins]`."""
        labels = targets.reshape(-1)
        logits = outputs.reshape(len(labels), -1).astype(jnp.float32)
        confidence, right = jnp.max(jax.nn.softmax(logits), axis=1), jnp.argmax(logits, axis=1) == labels
        real = of_targets(mask, targets)
        place = jnp.clip(jnp.ceil(confidence * bins).astype(jnp.int32) - 1, 0, bins - 1)
        add = lambda values: jnp.zeros(bins, values.dtype).at[place].add(jnp.where(real, values, 0))
        return {"rows": add(jnp.ones_like(labels)), "right": add(right.astype(jnp.int32)), "sure": add(confidence)}

    def value(state: PyTree) -> float:
        gap = np.abs(np.asarray(state["right"], np.float64) - state["sure"])
        rows = int(np.sum(state["rows"], dtype=np.int64))
        return float(np.sum(gap) / rows) if rows else float("nan")

    return Metric("calibration_error", LOWER, (CLASSES,), of_set=SetMetric(state, value))


EXAMPLES = ({}, {"bins": 10})
