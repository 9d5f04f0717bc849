"""Multinomial logistic regression: a convex model, handy for checking algorithms. On 28x28 images: 7,850 parameters."""

from flax import linen as nn

from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model


class Logistic(nn.Module):
    """Examples `[B, ...]`, flattened, to logits `[B, num_classes]`."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of examples."""
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def logistic(num_classes: int = 10) -> Model:
    """`Logistic` as a `Model` for classification."""
    return from_linen(Logistic(num_classes))


EXAMPLES = ({},)
