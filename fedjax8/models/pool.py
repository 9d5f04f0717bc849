"""Pooling of images with cheap gradients.

`flax.linen.max_pool` differentiates into `select_and_scatter`, which costs more on CPUs than the small convolution
before it. Windows that do not overlap need no such thing: the image is reshaped so that every window has axes of its
own, the maximum is taken pair by pair with `where`, and its derivative is a `where` too. Values and gradients are
flax's, also among equal values (frequent after ReLU): the first maximum in row-major order gets the gradient.
Overlapping or padded windows go to flax.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from fedjax8 import xla_cpu
from fedjax8.types import Array

Size = int | Sequence[int]
Padding = str | Sequence[tuple[int, int]]


def max_pool(x: Array, window: Size, strides: Size | None = None, padding: Padding = "VALID") -> Array:
    """The largest value in each window.

    Args:
      x: images `[..., height, width, channels]`.
      window: height and width, or one number for both.
      strides: distance between windows; the window itself if None (flax would take 1).
      padding: `"VALID"` drops rows and columns that fill no window; `"SAME"` or `((low, high), (low, high))`.

    Returns:
      `[..., height', width', channels]` in the dtype of x. NaN stays NaN.

    Example:
      >>> import jax.numpy as jnp
      >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1), 2).ravel().tolist()
      [5.0, 7.0, 13.0, 15.0]
    """
    window, strides = _pair(window), _pair(window if strides is None else strides)
    if not _is_tiling(x, window, strides, padding):
        return nn.max_pool(x, window, strides, padding)
    tiles = _tiles(x, window)
    values = [tiles[..., i, :, j, :] for i in range(window[0]) for j in range(window[1])]
    # Fused with its rounding to a grid and with its gradient, windows would be gathered again for each of them.
    return xla_cpu.stored(functools.reduce(_first_larger, values))


def avg_pool(x: Array, window: Size, strides: Size | None = None, padding: Padding = "VALID") -> Array:
    """The mean of each window, padding counted as zeros; arguments and result as for `max_pool`."""
    window, strides = _pair(window), _pair(window if strides is None else strides)
    if not _is_tiling(x, window, strides, padding):
        return nn.avg_pool(x, window, strides, padding)
    return _tiles(x, window).sum((-4, -2)) / math.prod(window)


def _pair(value: Size) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    if min(height, width) < 1:
        raise ValueError(f"window and strides are at least 1 in each direction, got {value}")
    return height, width


def _is_tiling(x: Array, window: tuple[int, int], strides: tuple[int, int], padding) -> bool:
    """Whether windows lie side by side and none reaches beyond the image."""
    height, width = x.shape[-3:-1]
    if window != strides or height < window[0] or width < window[1] or not jnp.issubdtype(x.dtype, jnp.floating):
        return False
    divides = height % window[0] == 0 and width % window[1] == 0
    return padding == "VALID" or (padding == "SAME" and divides)


def _tiles(x: Array, window: tuple[int, int]) -> Array:
    """`[..., height / h, h, width / w, w, channels]`, without the rows and columns that fill no window."""
    *batch, height, width, channels = x.shape
    rows, columns = height // window[0], width // window[1]
    x = x[..., : rows * window[0], : columns * window[1], :]
    return x.reshape(*batch, rows, window[0], columns, window[1], channels)


def _first_larger(a: Array, b: Array) -> Array:
    """The larger of each pair; a where they are equal or a is NaN, so that it alone gets the gradient."""
    return jnp.where((a >= b) | jnp.isnan(a), a, b)
