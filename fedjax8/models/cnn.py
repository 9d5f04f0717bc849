"""The two-convolution network of FedDyn's experiments, often called LeNet in the federated literature.

Two 5x5 convolutions of 64 features without padding, each with ReLU and a 2x2 max-pool, and dense layers of 384, 192 and
`num_classes` (Acar et al., "Federated learning based on dynamic regularization", ICLR 2021, their published code). On
32x32x3 images: 797,962 parameters for 10 classes (797,248 in kernels), 815,332 for 100 classes (814,528 in kernels).
"""

from flax import linen as nn

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.linen import from_linen
from fedjax8.models.pool import max_pool
from fedjax8.types import Array, Model


class CNN(nn.Module):
    """Images `[B, height, width, channels]` to logits `[B, num_classes]`."""

    num_classes: int = 10
    features: tuple[int, ...] = (64, 64)
    hidden: tuple[int, ...] = (384, 192)

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of images."""
        for features in self.features:
            x = nn.Conv(features, (5, 5), padding="VALID", conv_general_dilated=conv_general_dilated)(x)
            x = max_pool(nn.relu(x), 2)
        x = x.reshape(x.shape[0], -1)
        for features in self.hidden:
            x = nn.relu(nn.Dense(features)(x))
        return nn.Dense(self.num_classes)(x)


def cnn(num_classes: int = 10, *, features: tuple[int, ...] = (64, 64), hidden: tuple[int, ...] = (384, 192)) -> Model:
    """`CNN` as a `Model` for classification."""
    return from_linen(CNN(num_classes, tuple(features), tuple(hidden)))


EXAMPLES = ({"features": (4, 4), "hidden": (8, 6)},)
