"""Residual networks of basic blocks with GroupNorm, shared by `resnet18` and `resnet20`.

    block(x) = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))

He, Zhang, Ren, Sun, "Deep residual learning for image recognition", CVPR 2016, sections 3.3 and 4.2. GroupNorm (Wu and
He, ECCV 2018) stands in for every BatchNorm: its statistics are those of one image, so that clients with few or skewed
examples neither disturb each other nor have statistics to send. Convolutions have no bias and pad `size // 2` on every
side, which differs from `"SAME"` with stride 2. They start as He et al. 2015 have it for fan-out, and norms use
epsilon 1e-5, both as torchvision does; that the last layer starts as flax does is this project's choice.
"""

from flax import linen as nn
from jax import numpy as jnp

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.pool import max_pool
from fedjax8.types import Array

STEMS = ("3x3", "7x7")
SHORTCUTS = ("projection", "padding")


def _conv(features: int, size: int, stride: int = 1) -> nn.Conv:
    return nn.Conv(
        features,
        (size, size),
        stride,
        padding=size // 2,
        use_bias=False,
        kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
        conv_general_dilated=conv_general_dilated,
    )


class BasicBlock(nn.Module):
    """Images `[B, height, width, channels]` to `[B, height / stride, width / stride, features]`.

    Where the shape changes, the shortcut is a strided 1x1 convolution and a norm (`"projection"`, option B of the
    paper), or every `stride`-th pixel with zeros for the new channels (`"padding"`, option A, no parameters).
    """

    features: int
    stride: int = 1
    groups: int = 2
    shortcut: str = "projection"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """The block's output."""

        def norm(x):
            return nn.GroupNorm(self.groups, epsilon=1e-5)(x)

        y = nn.relu(norm(_conv(self.features, 3, self.stride)(x)))
        y = norm(_conv(self.features, 3)(y))
        if x.shape == y.shape:
            return nn.relu(y + x)
        if self.shortcut == "projection":
            return nn.relu(y + norm(_conv(self.features, 1, self.stride)(x)))
        x = x[:, :: self.stride, :: self.stride]
        return nn.relu(y + jnp.pad(x, [(0, 0)] * 3 + [(0, self.features - x.shape[-1])]))


class ResNet(nn.Module):
    """Images `[B, height, width, channels]` to logits `[B, num_classes]`.

    A stem, `blocks` basic blocks of each width, the first of every width but the first with stride 2, the mean over
    all pixels, and a dense layer. The stem is a 3x3 convolution, or one of 7x7 with stride 2 before a 3x3 max-pool with
    stride 2.
    """

    num_classes: int
    widths: tuple[int, ...]
    blocks: int
    shortcut: str
    stem: str = "3x3"
    groups: int = 2

    def __post_init__(self) -> None:
        for name, allowed in (("stem", STEMS), ("shortcut", SHORTCUTS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        for width in self.widths:
            if width % self.groups:
                raise ValueError(f"groups must divide every width; got {self.groups} groups and width {width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Logits of images."""
        x = _conv(self.widths[0], *((3,) if self.stem == "3x3" else (7, 2)))(x)
        x = nn.relu(nn.GroupNorm(self.groups, epsilon=1e-5)(x))
        if self.stem == "7x7":
            x = max_pool(x, 3, 2, ((1, 1), (1, 1)))
        for stage, features in enumerate(self.widths):
            for block in range(self.blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = BasicBlock(features, stride, self.groups, self.shortcut)(x)
        return nn.Dense(self.num_classes)(x.mean((1, 2)))
