"""DenseNet with bottlenecks and compression, shared by `densenet121` and `densenet201`.

    layer(x)      = [x, conv3x3(relu(norm(conv1x1(relu(norm(x))))))]        4 growth features, then growth
    transition(x) = average of 2x2 pixels of conv1x1(relu(norm(x)))         half of the features

Huang, Liu, van der Maaten, Weinberger, "Densely connected convolutional networks", CVPR 2017, table 1, with the stem
for ImageNet (7x7 and a 3x3 max-pool, both with stride 2), as the experiments on federated dynamic averaging have it for
32x32 images (Theologitis et al., EDBT 2025, arXiv 2405.20988, table 1, and the authors' code): dropout of 0.2 after
every convolution inside a dense block, kernels He-normal, BatchNorm with epsilon 1.001e-5. Convolutions have no bias.
Two things are this project's reading: running averages move by a hundredth per batch, which is Keras's default, and the
last layer's kernel starts He-normal too, its biases at zero.

The running statistics of BatchNorm are the model's state, not its parameters; rows that pad a batch count in them.

The experiments add to the loss an L2 penalty, 1e-4 times the sum of squares of all convolution and dense kernels. Its
gradient is 2e-4 times the kernel, and `--config.client.weight_decay=2e-4` adds the same to a kernel's gradient
before the optimizer (scales and biases have one dimension and do not decay): the same training, though the logged loss
leaves the penalty out. The authors' optimizer is SGD with Nesterov's momentum:
`--config.client.optimizer.name=sgd --config.client.optimizer.learning_rate=0.1 --config.client.optimizer.momentum=0.9
--config.client.optimizer.nesterov=True`.
"""

import functools

from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.pool import avg_pool, max_pool
from fedjax8.types import Array

BOTTLENECK = 4
"""Features of a dense layer's 1x1 convolution, in multiples of the growth."""


def _conv(features: int, size: int, stride: int = 1) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.he_normal(),
        conv_general_dilated=conv_general_dilated,
    )


def _norm_relu(x: Array, train: bool) -> Array:
    return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.99, epsilon=1.001e-5)(x))


class DenseLayer(nn.Module):
    """Images `[B, height, width, channels]` to `[B, height, width, channels + growth]`: new features behind the old."""

    growth: int
    dropout: float

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """The input and the layer's features."""
        dropout = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
        y = dropout()(_conv(BOTTLENECK * self.growth, 1)(_norm_relu(x, train)))
        y = dropout()(_conv(self.growth, 3)(_norm_relu(y, train)))
        return jnp.concatenate([x, y], axis=-1)


class Transition(nn.Module):
    """Images `[B, height, width, channels]` to `[B, height // 2, width // 2, channels // 2]`."""

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Fewer and smaller feature maps."""
        return avg_pool(_conv(x.shape[-1] // 2, 1)(_norm_relu(x, train)), 2)


class DenseNet(nn.Module):
    """Images `[B, height, width, channels]` to logits `[B, num_classes]`.

    A stem of `2 * growth` features, `blocks[i]` dense layers with a transition between blocks, a norm with ReLU, the
    mean over all pixels, and a dense layer. Four blocks need images of at least 29x29.
    """

    num_classes: int
    blocks: tuple[int, ...]
    growth: int = 32
    dropout: float = 0.2

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise ValueError(f"blocks holds the layers of each dense block, at least 1; got {self.blocks}")
        if self.growth < 1:
            raise ValueError(f"growth is {self.growth}; it must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of images; ValueError if they are too small for the number of blocks."""
        image = x.shape[1:3]
        x = _norm_relu(_conv(2 * self.growth, 7, 2)(x), train)
        x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
        for block, layers in enumerate(self.blocks):
            if block > 0:
                if min(x.shape[1:3]) < 2:
                    raise ValueError(f"images of {image[0]}x{image[1]} are too small for {len(self.blocks)} blocks")
                x = Transition()(x, train)
            for _ in range(layers):
                x = DenseLayer(self.growth, self.dropout)(x, train)
        x = _norm_relu(x, train).mean((1, 2))
        return nn.Dense(self.num_classes, kernel_init=nn.initializers.he_normal())(x)
