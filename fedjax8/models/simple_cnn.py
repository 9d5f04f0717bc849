"""The small convolutional network that simulators of federated learning are compared on.

Two 3x3 convolutions without padding (32 and 64 features), one 2x2 max-pool and two dense layers. On 32x32x3 images and
10 classes: 1,626,442 parameters, of which 1,626,208 are kernels.
"""

from flax import linen as nn

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.dense import dot_general
from fedjax8.models.linen import from_linen
from fedjax8.models.pool import max_pool
from fedjax8.types import Array, Model


class SimpleCNN(nn.Module):
    """Images `[B, height, width, channels]` to logits `[B, num_classes]`."""

    num_classes: int = 10
    features: tuple[int, ...] = (32, 64)
    hidden: int = 128

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of images."""
        for features in self.features:
            x = nn.relu(nn.Conv(features, (3, 3), padding="VALID", conv_general_dilated=conv_general_dilated)(x))
        x = max_pool(x, 2)
        x = nn.relu(nn.Dense(self.hidden, dot_general=dot_general)(x.reshape(x.shape[0], -1)))
        return nn.Dense(self.num_classes)(x)


def simple_cnn(num_classes: int = 10, *, features: tuple[int, int] = (32, 64), hidden: int = 128) -> Model:
    """`SimpleCNN` as a `Model` for classification."""
    return from_linen(SimpleCNN(num_classes, tuple(features), hidden))


EXAMPLES = ({"features": (3, 4), "hidden": 8},)
