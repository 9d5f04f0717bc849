"""VGG16*, the small VGG of the experiments on federated dynamic averaging (Theologitis et al., EDBT 2025).

Three blocks of two 3x3 convolutions with ReLU and a 2x2 max-pool, two dense layers of 512 with ReLU and dropout, and a
dense layer of `num_classes` (arXiv 2405.20988, table 1; the layers are those of the authors' code). Kernels start
Glorot-uniform, biases at zero. On 28x28x1 images and 10 classes, 2,592,202 parameters:

    convolutions    640   36,928   73,856   147,584   295,168   590,080
    dense           1,180,160   262,656   5,130

The output is logits, of which the loss takes the softmax. The authors train it by Keras's Adam:
`--config.client.optimizer.name=adam --config.client.optimizer.learning_rate=1e-3 --config.client.optimizer.eps=1e-7`.
At step t Keras's epsilon stands for epsilon / sqrt(1 - 0.999^t) in optax's formula, which tells only where gradients
are about that small.
"""

import functools

from flax import linen as nn

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.linen import from_linen
from fedjax8.models.pool import max_pool
from fedjax8.types import Array, Model


class VGG16Star(nn.Module):
    """Images `[B, height, width, channels]` to logits `[B, num_classes]`; every width is a block of two layers."""

    num_classes: int = 10
    widths: tuple[int, ...] = (64, 128, 256)
    hidden: tuple[int, ...] = (512, 512)
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of images."""
        glorot = nn.initializers.glorot_uniform()
        conv = functools.partial(nn.Conv, kernel_init=glorot, conv_general_dilated=conv_general_dilated)
        for features in self.widths:
            for _ in range(2):
                x = nn.relu(conv(features, (3, 3))(x))
            x = max_pool(x, 2)
        x = x.reshape(x.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features, kernel_init=glorot)(x))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return nn.Dense(self.num_classes, kernel_init=glorot)(x)


def vgg16_star(
    num_classes: int = 10,
    *,
    widths: tuple[int, ...] = (64, 128, 256),
    hidden: tuple[int, ...] = (512, 512),
    dropout: float = 0.5,
) -> Model:
    """`VGG16Star` as a `Model` for classification.

    Args:
      num_classes: number of logits.
      widths: features of each block of two convolutions; every block halves height and width, rounding down.
      hidden: features of the dense layers before the last.
      dropout: share of the features dropped in training after each of them, drawn from the `key` of `apply`.

    Raises:
      ValueError: `dropout` is not in [0, 1).
    """
    return from_linen(VGG16Star(num_classes, tuple(widths), tuple(hidden), dropout), train_argument="train")


EXAMPLES = ({"widths": (4, 6), "hidden": (8,)},)
