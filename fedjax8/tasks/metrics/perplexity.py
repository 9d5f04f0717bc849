"""Perplexity: the exponential of the mean cross-entropy of a target."""

import jax.numpy as jnp
import numpy as np
import optax

from fedjax8.directions import LOWER
from fedjax8.tasks.base import Metric, of_targets
from fedjax8.types import CLASSES, Array, PyTree, SetMetric


def perplexity() -> Metric:
    """exp of the cross-entropy in nats, averaged over all targets of the set: of sequences over tokens, so that a long
    row counts more than a short one, unlike in the loss.

    Infinite where that mean is beyond 709.
    """
    return Metric("perplexity", LOWER, (CLASSES,), of_set=SetMetric(_sums, _value))


def _sums(outputs: Array, targets: Array, mask: Array) -> PyTree:
    """Sum of cross-entropies float32, and number of targets int32."""
    real = of_targets(mask, targets).reshape(targets.shape)
    nats = optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), jnp.maximum(targets, 0))
    return {"nats": jnp.sum(jnp.where(real, nats, 0.0)), "targets": jnp.sum(real.astype(jnp.int32))}


def _value(state: PyTree) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(state["nats"]) / max(int(state["targets"]), 1)))


EXAMPLES = ({},)
