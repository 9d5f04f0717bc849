"""Input pipelines: raw columns cast, scaled and normalized on the device, and augmented while training.

Columns are prepared on the device, so that they can stay as they came:

    x -> (x / 255 - mean) / std        for uint8 images
    x -> (x - mean) / std              for float columns; other integers are symbols and stay as they are
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.given import checked
from fedjax8.types import Array, Key, Model


@checked
def inputs(
    model: Model,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
    *,
    augment: Callable[[Key, Array], Array] | None = None,
) -> Model:
    """`model` fed from raw columns, so that the data can stay uint8 on the device.

    Args:
      mean, std: of x / 255 (of x itself for float columns), one value or one per channel.
      augment: `(key, x [B, H, W, C]) -> x`, applied to the raw column while training; see `data.augment`.
    """
    center, scale = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if np.any(scale <= 0):
        raise ValueError(f"std must be positive, got {scale.tolist()}")

    def prepare(batch, key=None, train=False):
        x = batch["x"]
        if train and augment is not None:
            x = augment(jax.random.fold_in(key, 1), x)
        if x.dtype == jnp.uint8:
            return batch | {"x": x.astype(jnp.float32) * (1.0 / (255.0 * scale)) - center / scale}
        if jnp.issubdtype(x.dtype, jnp.integer):
            return batch
        return batch | {"x": (x.astype(jnp.float32) - center) / scale}

    def prepared(apply):
        def run(variables, batch, *, key=None, train=False, multiply=None):
            return apply(variables, prepare(batch, key, train), key=key, train=train, multiply=multiply)

        return run

    return model._replace(
        init=lambda key, batch: model.init(key, prepare(batch)),
        apply=prepared(model.apply),
        views={name: prepared(view) for name, view in model.views.items()},
    )


EXAMPLES = ({}, {"mean": 0.5, "std": 0.25})
