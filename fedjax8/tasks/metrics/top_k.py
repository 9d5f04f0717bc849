"""Share of rows whose class is among those with the k largest outputs."""

import jax.numpy as jnp

from fedjax8.directions import HIGHER
from fedjax8.errors import UserError
from fedjax8.models.linen import per_row
from fedjax8.tasks.base import Metric
from fedjax8.types import CLASSES, Array


def top_k(k: int = 5) -> Metric:
    """The metric `top_<k>`: 1 for a row with fewer than k classes whose output is as large as that of its own, or
    larger.

    Args:
      k: at least 1, and below the number of classes, since of all of them each is right: UserError where the model
        is traced.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}")

    def hits(outputs: Array, targets: Array) -> Array:
        """float32 `[B]`."""
        if outputs.shape[-1] <= k:
            raise UserError(
                f"top_{k} is 1 for any model of {outputs.shape[-1]} classes; take k below {outputs.shape[-1]}, or "
                "accuracy"
            )
        own = jnp.take_along_axis(outputs, jnp.maximum(targets, 0)[..., None], axis=-1)
        others = jnp.sum(outputs >= own, axis=-1) - 1
        ranked = jnp.isfinite(own[..., 0]) & (others < k)
        return per_row(ranked.astype(jnp.float32), targets)

    return Metric(f"top_{k}", HIGHER, (CLASSES,), of_row=hits)


EXAMPLES = ({}, {"k": 3})
