"""Messages in 4- and 6-bit floats, packed, with a scale for every 32 values (MXFP4, MXFP6).

    code = round_to_grid(x / scale),   x^ = code * scale,   E[x^] = x

Reference, rules for scales and guarantees are those of `block_fp8`; the formats (see `numerics.formats`) are the
specification's e2m1 (4 bits: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), e2m3 and e3m2 (6 bits).

Message layout per leaf of n values: ceil(n * bits / 8) bytes of packed codes, the sign on top of each, then
ceil(n / block) scales of 1 byte (float8_e8m0fnu) or, for `float32`, 4 bytes. Other leaves stay float32.
"""

from fedjax8.codecs._blocks import block_scaled
from fedjax8.numerics import NARROW_FORMATS, get_format
from fedjax8.types import Codec


def narrow(
    format: str = "e2m1",
    rounding: str = "stochastic",
    *,
    block: int | None = 32,
    scale: str = "power_of_two",
    min_ndim: int = 2,
    min_size: int = 0,
) -> Codec:
    """Codec that sends floats of 4 or 6 bits in scaled blocks.

    Args:
      format: `e2m1` (4 bits), `e2m3` or `e3m2` (6 bits).
      rounding: `stochastic` (unbiased) or `nearest`.
      block: values that share a scale; None for one scale per leaf.
      scale: `power_of_two` (nothing is clipped), `ocp` (the specification's rule) or `float32`.
      min_ndim, min_size: leaves of at least that many dimensions and elements are quantized.

    Measures `quantization_error`.
    """
    return block_scaled(
        get_format(format, NARROW_FORMATS), rounding, block=block, scale=scale, min_ndim=min_ndim, min_size=min_size
    )


EXAMPLES = ({}, {"format": "e3m2", "scale": "float32", "min_ndim": 0})
