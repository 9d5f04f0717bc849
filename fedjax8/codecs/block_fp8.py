"""FP8 messages with a scale for every 32 values (MXFP8): a large value costs precision in its own block alone.

    code = round_to_grid(x / scale),   x^ = code * scale,   E[x^] = x

Reference: Open Compute Project, "Microscaling Formats (MX) Specification" v1.0, and Rouhani et al., "Microscaling Data
Formats for Deep Learning" (arXiv 2310.10537): blocks of 32, scales that are powers of two in one byte (e8m0). Their
rule for the scale, which clips the top of some blocks, is `scale="ocp"`; the default, our choice, rounds the scale up
instead. Blocks are of consecutive values of the flattened leaf. Stochastic rounding is ours too (`numerics.rounding`).

Guarantees: stochastic rounding is unbiased (with `ocp` wherever nothing is clipped); |x^ - x| is at most one step of
the grid, half a step to nearest: 2**-M |x|, or the scale times the format's smallest number; plus the clipped excess.

Message layout per leaf of n values: n codes (native 8-bit floats, 1 byte each), then ceil(n / block) scales of 1 byte
(float8_e8m0fnu) or, for `float32`, 4 bytes. Other leaves stay float32.
"""

from fedjax8.codecs._blocks import block_scaled
from fedjax8.numerics import get_format
from fedjax8.types import Codec


def block_fp8(
    format: str = "e4m3fn",
    rounding: str = "stochastic",
    *,
    block: int | None = 32,
    scale: str = "power_of_two",
    min_ndim: int = 2,
    min_size: int = 0,
) -> Codec:
    """Codec that sends 8-bit floats in scaled blocks.

    Args:
      format: `e4m3fn` or `e5m2` (those of the specification), or `e4m3fnuz`.
      rounding: `stochastic` (unbiased) or `nearest`.
      block: values that share a scale; None for one scale per leaf.
      scale: `power_of_two` (nothing is clipped), `ocp` (the specification's rule) or `float32`.
      min_ndim, min_size: leaves of at least that many dimensions and elements are quantized.

    Measures `quantization_error`.
    """
    return block_scaled(get_format(format), rounding, block=block, scale=scale, min_ndim=min_ndim, min_size=min_size)


EXAMPLES = ({}, {"format": "e5m2", "rounding": "nearest", "scale": "ocp", "min_ndim": 0})
