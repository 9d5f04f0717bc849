"""Representations: the input of a model's last layer, for any model."""

import jax

from fedjax8.errors import UserError
from fedjax8.types import Array, Batch, Key, Model, Variables


def representation(
    model: Model, variables: Variables, batch: Batch, *, key: Key | None = None, train: bool = False
) -> Array:
    """`[B, D]`: the input of the last dense or convolution layer, flattened for each row.

    It is seen by `multiply`, the hook at every layer's product, so that adapters (quantized, low-rank) have it too. The
    last layer is the one whose product is asked for last.

    Raises:
      UserError: the model has no such layer, or hides its last one in `nn.scan` or `nn.remat`.
    """
    seen: dict[str, Array] = {}

    def record(path, product, x, kernel):
        if x.ndim:  # recurrent layers ask for their kernel with a mere number
            seen[path] = x
        return product.forward(x, kernel)

    try:
        model.apply(variables, batch, key=key, train=train, multiply=record)
        if not seen:
            raise UserError("the model has no dense or convolution layer whose input would be its representation")
        return list(seen.values())[-1].reshape(batch["mask"].shape[0], -1)
    except jax.errors.UnexpectedTracerError as error:
        raise UserError("the model hides its last layer in nn.scan or nn.remat: write that layer out") from error
