"""Forms of the three products of a convolution, for `models.conv`: by lax, by patches, by taps.

With image x, kernel k and cotangent g: y = x * k, dx (for the image) and dk (for the kernel). `conv` chooses among the
forms. The forms by matmul take 8-bit floats as well as wider ones.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.models._blocks import block_size, map_blocks
from fedjax8.types import Array

FEW_CHANNELS = 4
"""Up to here the channel axis is too short for a vector register, so pixels become the fastest axis instead."""
NARROW_OUTPUT = 16
"""Forward with few input channels: up to here the patches that dk needs serve y as well, at no further cost."""
NARROW_SUM, FEW_TERMS = 32, 32
"""Forward with few input channels: up to so many features and products a pixel a sum written out beats lax."""
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Geometry(NamedTuple):
    """Static description of a two-dimensional convolution; height first in every pair."""

    image: tuple[int, int]
    kernel: tuple[int, int]
    output: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[tuple[int, int], tuple[int, int]]
    dilation: tuple[int, int]
    groups: int
    precision: Any
    on_cpu: bool

    def images(self, x: Array) -> Array:
        """x with the axis that a one-dimensional convolution lacks."""
        return x.reshape(len(x), *self.image, x.shape[-1])

    def taps(self, kernel: Array) -> Array:
        """The kernel likewise."""
        return kernel.reshape(*self.kernel, *kernel.shape[-2:])


# Forms by lax.


def forward_lax(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y by lax."""
    return lax.conv_general_dilated(
        x,
        kernel,
        geometry.stride,
        geometry.padding,
        rhs_dilation=geometry.dilation,
        dimension_numbers=_LAYOUT,
        feature_group_count=geometry.groups,
        precision=geometry.precision,
    )


def input_gradient_lax(geometry: Geometry, g: Array, kernel: Array) -> Array:
    """dx by lax: its transpose for images."""
    channels = kernel.shape[2] * geometry.groups
    x = jax.ShapeDtypeStruct((g.shape[0], *geometry.image, channels), g.dtype)
    return jax.linear_transpose(lambda x: forward_lax(geometry, x, kernel), x)(g)[0]


def kernel_gradient_lax(geometry: Geometry, x: Array, g: Array) -> Array:
    """dk by lax: its transpose for the kernel."""
    kernel = jax.ShapeDtypeStruct((*geometry.kernel, x.shape[-1] // geometry.groups, g.shape[-1]), x.dtype)
    return jax.linear_transpose(lambda kernel: forward_lax(geometry, x, kernel), kernel)(g)[0]


# Forms by matmul.


def contract_8_bit(a: Array, b: Array, dimension_numbers: Any) -> Array:
    """`lax.dot_general` of 8-bit operands with sums in float32.

    At the default precision GPUs would sum such products in less ("fast accumulation").
    """
    precision = lax.Precision.HIGHEST
    return lax.dot_general(a, b, dimension_numbers, precision=precision, preferred_element_type=jnp.float32)


def _contract(geometry, a, b, axes):
    """`lax.dot_general` over these axes of a and b; sums and result in float32 or wider."""
    dimension_numbers = (axes, ((), ()))
    if a.dtype.itemsize == 1:
        return contract_8_bit(a, b, dimension_numbers)
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, dimension_numbers, precision=geometry.precision, preferred_element_type=wide)


def _windows(geometry, x, height_axis, stack_axis):
    """x at every tap of the kernel: two new axes `kh, kw` at `stack_axis`, and the output's height and width."""
    edges = [(0, 0, 0)] * x.ndim
    edges[height_axis : height_axis + 2] = [(low, high, 0) for low, high in geometry.padding]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    for axis in range(2):
        stride, reach = geometry.stride[axis], (geometry.output[axis] - 1) * geometry.stride[axis] + 1
        starts = [tap * geometry.dilation[axis] for tap in range(geometry.kernel[axis])]
        image_axis = height_axis + axis * (2 if stack_axis <= height_axis else 1)
        views = [lax.slice_in_dim(x, start, start + reach, stride, image_axis) for start in starts]
        x = jnp.stack(views, stack_axis + axis)
    return x


def _patches(geometry, x):
    """`[B * H * W, kh * kw * I]`."""
    return _windows(geometry, x, 1, 3).reshape(-1, math.prod(geometry.kernel) * x.shape[-1])


def _patches_pixels_last(geometry, x):
    """`[kh * kw * I, B * H * W]`."""
    return _windows(geometry, x.transpose(3, 0, 1, 2), 2, 0).reshape(math.prod(geometry.kernel) * x.shape[-1], -1)


def forward_patches(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y, every pixel's patch times the kernel."""
    y = _contract(geometry, _patches(geometry, x), kernel.reshape(-1, kernel.shape[-1]), ((1,), (0,)))
    return y.reshape(x.shape[0], *geometry.output, -1)


def forward_cpu(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y: lax, or for few channels a matmul with patches whose pixels come last, or a sum of shifted images."""
    channels, features = kernel.shape[2:]
    if channels > FEW_CHANNELS:
        return forward_lax(geometry, x, kernel)
    if features > NARROW_OUTPUT:
        short = features <= NARROW_SUM and math.prod(kernel.shape[:3]) <= FEW_TERMS and x.dtype == jnp.float32
        return (forward_sum if short else forward_lax)(geometry, x, kernel)
    y = _contract(geometry, kernel.reshape(-1, kernel.shape[-1]), _patches_pixels_last(geometry, x), ((0,), (0,)))
    return y.reshape(-1, x.shape[0], *geometry.output).transpose(1, 2, 3, 0)


def forward_sum(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y, the sum over taps and channels of a shifted image times that row of the kernel, in one pass.

    The loop over blocks keeps XLA from computing the sum anew in every consumer of y that it could fuse it with.
    """

    def block(x: Array) -> Array:
        views = _views(geometry, x)
        terms = [(*at, channel) for at in np.ndindex(*geometry.kernel) for channel in range(x.shape[-1])]
        return jnp.asarray(sum(views[i, j][..., c, None] * kernel[i, j, c] for i, j, c in terms))

    return map_blocks(block, block_size(len(x), len(x) // 2), x)


def _views(geometry: Geometry, x: Array) -> dict[tuple[int, int], Array]:
    """x `[B, h, w, I]` at every tap of the kernel: `[B, H, W, I]`."""
    edges = [(0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    reach = [(n - 1) * s + 1 for n, s in zip(geometry.output, geometry.stride, strict=True)]

    def view(*tap):
        low = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
        high = [a + r for a, r in zip(low, reach, strict=True)]
        return lax.slice(x, (0, *low, 0), (x.shape[0], *high, x.shape[3]), (1, *geometry.stride, 1))

    return {tap: view(*tap) for tap in np.ndindex(*geometry.kernel)}


def input_gradient_taps(geometry: Geometry, g: Array, kernel: Array) -> Array:
    """Every output pixel's cotangent times the kernel, added where the taps lie in the image."""
    kh, kw, channels, features = kernel.shape
    taps = _contract(geometry, g.reshape(-1, features), kernel.reshape(-1, features), ((1,), (1,)))
    taps = taps.reshape(g.shape[0], *geometry.output, kh, kw, channels)

    def edges(axis, tap):
        low = tap * geometry.dilation[axis] - geometry.padding[axis][0]
        covered = (geometry.output[axis] - 1) * geometry.stride[axis] + 1
        return low, geometry.image[axis] - covered - low, geometry.stride[axis] - 1

    def place(x, axis, tap):
        around = [(0, 0, 0)] * x.ndim
        around[1 + axis] = edges(axis, tap)
        return lax.pad(x, jnp.zeros((), x.dtype), around)

    taps = sum(place(taps[:, :, :, i], 0, i) for i in range(kh))
    return sum(place(taps[:, :, :, j], 1, j) for j in range(kw))


def kernel_gradient_patches(geometry: Geometry, x: Array, g: Array) -> Array:
    """dk, every pixel's patch times its cotangent, summed over pixels."""
    dk = _contract(geometry, _patches(geometry, x), g.reshape(-1, g.shape[-1]), ((0,), (0,)))
    return dk.reshape(*geometry.kernel, x.shape[-1], g.shape[-1])


def kernel_gradient_cpu(geometry: Geometry, x: Array, g: Array) -> Array:
    """dk: a forward convolution with batch and channels exchanged, or a matmul with patches."""
    if geometry.kernel == (1, 1):
        return kernel_gradient_patches(geometry, x, g)
    if x.shape[-1] <= FEW_CHANNELS:
        dk = _contract(geometry, _patches_pixels_last(geometry, x), g.reshape(-1, g.shape[-1]), ((1,), (0,)))
        return dk.reshape(*geometry.kernel, x.shape[-1], g.shape[-1])
    # Channels become the batch, the batch becomes the channels, and the cotangent is the kernel. The image is cut (or
    # padded) to the reach of the taps, so that as many positions come out as there are taps.
    edges = [(0, 0, 0)] * 4
    for axis in range(2):
        low = geometry.padding[axis][0]
        steps = (geometry.output[axis] - 1) * geometry.stride[axis]
        reach = steps + (geometry.kernel[axis] - 1) * geometry.dilation[axis] + 1
        edges[1 + axis] = (low, reach - low - geometry.image[axis], 0)
    swapped = lax.conv_general_dilated(
        lax.pad(x.transpose(3, 1, 2, 0), jnp.zeros((), x.dtype), edges),
        g.transpose(1, 2, 0, 3),
        geometry.dilation,
        "VALID",
        rhs_dilation=geometry.stride,
        dimension_numbers=_LAYOUT,
        precision=geometry.precision,
        preferred_element_type=jnp.promote_types(x.dtype, jnp.float32),
    )
    return swapped.transpose(1, 2, 0, 3)
