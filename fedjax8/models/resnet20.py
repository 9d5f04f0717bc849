"""ResNet-20 for CIFAR with GroupNorm (He et al., "Deep residual learning for image recognition", CVPR 2016, sec. 4.2).

A 3x3 convolution, three basic blocks each of 16, 32 and 64 features, mean over pixels, dense. Shortcuts have no
parameters (option A): where the size halves, every second pixel, with zeros for the new channels. On
3-channel images and 10 classes: 269,722 parameters, of which 268,336 are in 20 kernels.

Where this differs from the paper: GroupNorm (2 groups, this project's choice) instead of BatchNorm, with as many
parameters. That the zeros come after the old channels is a choice as well; the paper only says that they are extra.
"""

from fedjax8.models._resnet import ResNet
from fedjax8.models.linen import from_linen
from fedjax8.types import Model


def resnet20(
    num_classes: int = 10, *, groups: int = 2, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3
) -> Model:
    """ResNet-20 as a `Model` for classification of images `[B, height, width, channels]`.

    Arguments are those of `resnet18`; `blocks=n` gives the paper's network of `6n + 2` layers.
    """
    return from_linen(ResNet(num_classes, tuple(widths), blocks, "padding", "3x3", groups))


EXAMPLES = ({"widths": (4, 6), "blocks": 1},)
