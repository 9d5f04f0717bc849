"""A multilayer perceptron. On 28x28 images with the defaults: 159,010 parameters, of which 158,800 are kernels."""

from flax import linen as nn

from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model


class MLP(nn.Module):
    """Examples `[B, ...]`, flattened, to logits `[B, num_classes]`, through ReLU layers of the widths in `hidden`."""

    hidden: tuple[int, ...] = (200,)
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of examples."""
        x = x.reshape(x.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.num_classes)(x)


def mlp(hidden: tuple[int, ...] = (200,), num_classes: int = 10) -> Model:
    """`MLP` as a `Model` for classification."""
    return from_linen(MLP(tuple(hidden), num_classes))


EXAMPLES = ({}, {"hidden": (8, 4), "num_classes": 3})
