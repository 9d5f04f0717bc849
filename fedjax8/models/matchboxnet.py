"""MatchboxNet 3x1x64 for keyword spotting (Majumdar and Ginsburg, Interspeech 2020, arXiv 2004.08531).

Separable convolutions in time, as in NVIDIA NeMo's `matchboxnet_3x1x64_v2.yaml`, all with stride 1:

    separable(128, 11 taps)
    residual separable(64, 13), (64, 15), (64, 17)        relu(norm(separable(x)) + norm(pointwise(x)))
    separable(128, 29, dilation 2)
    pointwise(128)
    mean over time, dense

each but the last followed by ReLU. A separable convolution is a depthwise one (per feature, in time) and a pointwise
one (per frame, over features), then one norm; convolutions have no bias and start Xavier-uniform, as in NeMo. With 64
features per frame and 35 classes: 76,288 parameters in 15 kernels and 1,571 others.

Where this differs from NeMo: its norm is BatchNorm. The default here is GroupNorm with 2 groups (this project's
choice): it has as many parameters and no statistics, so that messages hold parameters only, and clients, one speaker
each with few clips, need not agree on statistics. `norm="batch"` is NeMo's (epsilon 1e-3, running averages moved by a
tenth per batch); its running statistics become the model's state, and rows that pad a batch count in them. NeMo masks
frames beyond a clip's end, which clips of equal length do not need.
"""

import functools

from flax import linen as nn

from fedjax8.models.conv import conv_general_dilated
from fedjax8.models.linen import from_linen
from fedjax8.types import Array, Model

NORMS = ("group", "batch")


class SeparableBlock(nn.Module):
    """Frames `[B, frames, channels]` to `[B, frames, features]`; `taps=1` is a pointwise convolution alone."""

    features: int
    taps: int
    norm: str
    groups: int
    dilation: int = 1
    residual: bool = False

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """The block's output."""
        conv = functools.partial(
            nn.Conv,
            use_bias=False,
            kernel_init=nn.initializers.xavier_uniform(),
            conv_general_dilated=conv_general_dilated,
        )

        def pointwise(x):
            x = conv(self.features, (1,))(x)
            if self.norm == "batch":
                return nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3)(x)
            return nn.GroupNorm(self.groups, epsilon=1e-5)(x)

        y = x
        if self.taps > 1:
            channels = x.shape[-1]
            y = conv(channels, (self.taps,), kernel_dilation=self.dilation, feature_group_count=channels)(x)
        y = pointwise(y)
        return nn.relu(y + pointwise(x) if self.residual else y)


class MatchboxNet(nn.Module):
    """Frames `[B, frames, features]` or `[B, frames, features, 1]` to logits `[B, num_classes]`.

    `taps` are those of the first, the residual and the dilated separable convolutions; the residual ones have `width`
    features, all others `outer_width`.
    """

    num_classes: int = 35
    width: int = 64
    outer_width: int = 128
    taps: tuple[int, ...] = (11, 13, 15, 17, 29)
    norm: str = "group"
    groups: int = 2

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ValueError(f"norm is {self.norm!r}; allowed are {', '.join(NORMS)}")
        if len(self.taps) < 2:
            raise ValueError(f"taps needs at least the first and the dilated convolution's; got {self.taps}")
        for width in (self.width, self.outer_width):
            if self.norm == "group" and width % self.groups:
                raise ValueError(f"groups must divide every width; got {self.groups} groups and width {width}")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, train: bool = False) -> Array:
        """Logits of clips."""
        x = x.reshape(x.shape[:3])
        first, *residual, dilated = self.taps
        block = functools.partial(SeparableBlock, norm=self.norm, groups=self.groups)
        x = block(self.outer_width, first)(x, train)
        for taps in residual:
            x = block(self.width, taps, residual=True)(x, train)
        x = block(self.outer_width, dilated, dilation=2)(x, train)
        x = block(self.outer_width, 1)(x, train)
        return nn.Dense(self.num_classes)(x.mean(1))


def matchboxnet(
    num_classes: int = 35,
    *,
    width: int = 64,
    outer_width: int = 128,
    taps: tuple[int, ...] = (11, 13, 15, 17, 29),
    norm: str = "group",
    groups: int = 2,
) -> Model:
    """`MatchboxNet` as a `Model` for classification of clips `[B, 128, 64]`.

    Args:
      num_classes: number of logits.
      width: features of the residual blocks.
      outer_width: features of the layers before and after them.
      taps: of the first separable convolution, of one residual block each, and of the dilated one.
      norm: `"group"` or `"batch"` (then the model has state).
      groups: of every GroupNorm; must divide both widths.
    """
    return from_linen(MatchboxNet(num_classes, width, outer_width, tuple(taps), norm, groups), train_argument="train")


_SMALL = {"width": 4, "outer_width": 6, "taps": (3, 3, 3)}
EXAMPLES = (_SMALL, {**_SMALL, "norm": "batch"})
