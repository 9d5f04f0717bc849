"""LeNet-5 (LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998, II.B).

Two 5x5 convolutions (6 features with padding, 16 without), each followed by an activation and a 2x2 pool, and dense
layers of 120, 84 and `num_classes`. On 28x28x1 images and 10 classes: 61,706 parameters, of which 61,470 are kernels.

Where this differs from the paper: every feature map of the second convolution sees all maps of the first, pooling has
no trained coefficients, and the output is a linear layer instead of radial basis functions. The defaults, ReLU and
max-pooling, are those of today's federated-learning papers; `LeNet5(activation="tanh", pool="avg")` is the classic,
and with `kernel_init="glorot_uniform"` besides the network of the experiments on federated dynamic averaging
(Theologitis et al., EDBT 2025, arXiv 2405.20988). By layer: 156 + 2,416 + 48,120 + 10,164 + 850 parameters.
"""

import functools
from collections.abc import Collection

from flax import linen as nn

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.linen import from_linen
from fedjax8.models.pool import avg_pool, max_pool
from fedjax8.types import Array, Model

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh}
POOLS = {"max": max_pool, "avg": avg_pool}
KERNELS = {"lecun_normal": nn.initializers.lecun_normal(), "glorot_uniform": nn.initializers.glorot_uniform()}


class LeNet5(nn.Module):
    """Images `[B, height, width, channels]` to logits `[B, num_classes]`.

    `activation` is `"relu"` or `"tanh"`, `pool` is `"max"` or `"avg"`. The first convolution pads, so that 28x28
    images give the shapes of the paper's 32x32; `padding="VALID"` takes 32x32 images as the paper has them.
    `kernel_init`
    is how kernels start: `"lecun_normal"`, which is flax's default, or `"glorot_uniform"`, Keras's.
    """

    num_classes: int = 10
    activation: str = "relu"
    pool: str = "max"
    padding: str = "SAME"
    kernel_init: str = "lecun_normal"

    def __post_init__(self) -> None:
        choices: dict[str, Collection[str]] = {
            "activation": ACTIVATIONS,
            "pool": POOLS,
            "padding": ("SAME", "VALID"),
            "kernel_init": KERNELS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of images."""
        activation, pool, initial = ACTIVATIONS[self.activation], POOLS[self.pool], KERNELS[self.kernel_init]
        conv = functools.partial(nn.Conv, kernel_init=initial, conv_general_dilated=conv_general_dilated)
        for features, padding in ((6, self.padding), (16, "VALID")):
            x = conv(features, (5, 5), padding=padding)(x)
            x = pool(activation(x), 2)
        x = x.reshape(x.shape[0], -1)
        for features in (120, 84):
            x = activation(nn.Dense(features, kernel_init=initial)(x))
        return nn.Dense(self.num_classes, kernel_init=initial)(x)


def lenet5(
    num_classes: int = 10,
    *,
    activation: str = "relu",
    pool: str = "max",
    padding: str = "SAME",
    kernel_init: str = "lecun_normal",
) -> Model:
    """`LeNet5` as a `Model` for classification."""
    return from_linen(LeNet5(num_classes, activation, pool, padding, kernel_init))


EXAMPLES = ({}, {"activation": "tanh", "pool": "avg", "kernel_init": "glorot_uniform"})
