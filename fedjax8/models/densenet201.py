"""DenseNet-201 for small images (Huang et al., "Densely connected convolutional networks", CVPR 2017, table 1).

Dense blocks of 6, 12, 48 and 32 layers, growth 32. `_densenet.py` says how they are laid out and initialized,
and how the experiments on federated dynamic averaging train them. On 32x32x3 images and 10 classes: 18,112,138
parameters, and 229,056 numbers of batch statistics in the model's state.
"""

from fedjax8.models._densenet import DenseNet
from fedjax8.models.linen import from_linen
from fedjax8.types import Model


def densenet201(
    num_classes: int = 10, *, growth: int = 32, dropout: float = 0.2, blocks: tuple[int, ...] = (6, 12, 48, 32)
) -> Model:
    """DenseNet-201 as a `Model` for classification of images `[B, height, width, channels]`.

    Args:
      num_classes: number of logits.
      growth: features that every dense layer adds.
      dropout: share of features dropped in training after every convolution inside a dense block, drawn from the
        `key` of `apply`.
      blocks: dense layers in each block; every block but the first halves height and width.

    Raises:
      ValueError: a setting out of range; from `init` and `apply`, images too small for the number of blocks.
    """
    return from_linen(DenseNet(num_classes, tuple(blocks), growth, dropout), train_argument="train")


EXAMPLES = ({"blocks": (1, 1), "growth": 2, "dropout": 0.0},)  # compiled quickly
