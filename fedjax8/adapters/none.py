"""No adapter: the model as it is, in float32."""

from fedjax8.types import Model


def none(model: Model) -> Model:
    """`model` itself."""
    return model


EXAMPLES = ({},)
