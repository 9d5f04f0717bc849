"""Area under the receiver operating characteristic."""

import jax.numpy as jnp
import numpy as np

from fedjax8.directions import HIGHER
from fedjax8.errors import UserError
from fedjax8.tasks.base import Metric
from fedjax8.types import CLASSES, MARKS, Array, PyTree, SetMetric


def auc() -> Metric:
    """The chance that a row of a class has a larger probability of it than a row of another class, by scikit-learn.

    Of several classes (one against the rest) or labels it is the mean over those of which the set has rows with and
    without. Exact: the outputs of all rows are kept for it, so that it is of targets that are one a row, and refused of
    sequences.
    """
    return Metric("auc", HIGHER, (CLASSES, MARKS), of_set=SetMetric(_scores, _value, rows=True), admits=_admits)


def _scores(outputs: Array, targets: Array, mask: Array) -> PyTree:
    """Outputs `[B, C]` and targets, as given."""
    if outputs.ndim > 2:
        raise UserError("auc is of one target a row, not of sequences; take perplexity, macro_f1 or calibration_error")
    return {"outputs": outputs.astype(jnp.float32), "targets": targets}


def log_odds(logits: np.ndarray) -> np.ndarray:
    """log(p / (1 - p)) of softmax probabilities p, float64 `[N, C]`: in their order, also where they round to 1."""
    logits = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    rows, best = np.arange(len(logits)), logits.argmax(axis=1)
    found = log_p - np.log1p(-np.minimum(np.exp(log_p), 0.5))
    others = logits.copy()
    others[rows, best] = -np.inf
    found[rows, best] = -np.logaddexp.reduce(others, axis=1)  # less the best logit, which is 0
    return found


def _value(state: PyTree) -> float:
    from sklearn.metrics import roc_auc_score

    scores, targets = np.asarray(state["outputs"]), np.asarray(state["targets"])
    if not np.isfinite(scores).all():
        return float("nan")
    if targets.ndim == 1:
        targets, scores = targets[:, None] == np.arange(scores.shape[1]), log_odds(scores)
    parts = [
        roc_auc_score(targets[:, c], scores[:, c])
        for c in range(scores.shape[1])
        if 0 < np.count_nonzero(targets[:, c]) < len(targets)
    ]
    return float(np.mean(parts)) if parts else float("nan")


def _admits(targets: np.ndarray) -> None:
    columns = targets.reshape(len(targets), -1)
    if not (columns != columns[:1]).any():
        raise UserError("all rows have the same targets, so that there is no pair to rank; take more rows")


EXAMPLES = ({},)
