"""Coefficient of determination."""

import jax.numpy as jnp
import numpy as np

from fedjax8.directions import HIGHER
from fedjax8.errors import UserError
from fedjax8.tasks.base import Metric, side_by_side
from fedjax8.types import VALUES, Array, PyTree, SetMetric


def r2() -> Metric:
    """1 - sum of squared errors / sum of squared deviations from the targets' mean, by scikit-learn, in float64; of K
    numbers the mean over them. 0 for a model that always predicts the mean; negative for worse ones."""
    return Metric("r2", HIGHER, (VALUES,), of_set=SetMetric(_pairs, _value, rows=True), admits=_admits)


def _pairs(outputs: Array, targets: Array, mask: Array) -> PyTree:
    """Predictions and targets, `[B, K]`."""
    predicted, wanted = side_by_side(outputs, targets)
    return {"predicted": predicted, "targets": jnp.asarray(wanted)}


def _value(state: PyTree) -> float:
    from sklearn.metrics import r2_score

    predicted, targets = np.asarray(state["predicted"], np.float64), np.asarray(state["targets"], np.float64)
    if not np.isfinite(predicted).all() or len(targets) < 2:
        return float("nan")
    return float(r2_score(targets, predicted))


def _admits(targets: np.ndarray) -> None:
    columns = targets.reshape(len(targets), -1)
    if (columns == columns[:1]).all(axis=0).any():
        raise UserError("all targets are equal, so that there is no deviation to explain; take more rows, or mae")


EXAMPLES = ({},)
