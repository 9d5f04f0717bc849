"""ResNet-18 with GroupNorm (He et al., "Deep residual learning for image recognition", CVPR 2016, table 1).

torchvision's layout: two basic blocks each of 64, 128, 256 and 512 features, 1x1 projection shortcuts with a norm,
convolutions without bias; every BatchNorm is a GroupNorm with 2 groups, as in FedDyn's published code. The paper's stem
for ImageNet, 7x7 with stride 2 and a max-pool, leaves 8x8 pixels of a 32x32 image; the default here is the 3x3 stem
that is usual for CIFAR. The 21 kernels, with an input of 3 channels:

    stem   classes   in kernels   elsewhere
    7x7    10        11,172,032   9,610
    3x3    10        11,164,352   9,610
    3x3    100       11,210,432   9,700
"""

from fedjax8.models._resnet import ResNet
from fedjax8.models.linen import from_linen
from fedjax8.types import Model


def resnet18(
    num_classes: int = 10,
    *,
    stem: str = "3x3",
    groups: int = 2,
    widths: tuple[int, ...] = (64, 128, 256, 512),
    blocks: int = 2,
) -> Model:
    """ResNet-18 as a `Model` for classification of images `[B, height, width, channels]`.

    Args:
      num_classes: number of logits.
      stem: `"3x3"` (stride 1) or `"7x7"` (stride 2, then a 3x3 max-pool with stride 2).
      groups: of every GroupNorm; must divide the widths.
      widths: features of each stage; every stage but the first halves height and width.
      blocks: basic blocks in each stage.
    """
    return from_linen(ResNet(num_classes, tuple(widths), blocks, "projection", stem, groups))


EXAMPLES = ({"widths": (4, 6), "blocks": 1}, {"stem": "7x7", "widths": (4,), "blocks": 1})
