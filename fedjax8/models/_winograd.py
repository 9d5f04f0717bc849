"""Convolution by 3x3 kernels with a quarter of the multiplications, for `models.conv` on CPUs.

Winograd's minimal filtering F(4x4, 3x3): the image is cut into tiles of 6x6 pixels that overlap by two, and of each
come 4x4 pixels of output. With three fixed matrices A, B, G, one tile x of the image and the kernel k,

    y = A^T [ (G k G^T) . (B^T x B) ] A              36 products instead of 16 * 9 = 144

where `.` multiplies position by position. Summed over channels, each of the 36 positions is a matrix product of tiles
by channels with channels by features, and those run at the full speed of the machine. The transforms are sums of a few
shifted images. The gradient for the image is the same with the kernel turned around; the gradient for the kernel is
the transpose of the above,

    dk = G^T [ sum over tiles of (B^T x B) . (A dy A^T) ] G

S. Winograd, "Arithmetic complexity of computations", 1980; A. Lavin and S. Gray, "Fast algorithms for convolutional
neural networks", CVPR 2016 (arXiv 1509.09308), sections 4.1 to 4.3. Where we differ: the polynomials behind the
matrices are evaluated at 0, +-1/sqrt(2), +-sqrt(2) and infinity instead of 0, +-1, +-2 and infinity, which rounds three
times less (B. Barabasz et al., "Error analysis and improving the accuracy of Winograd convolution", 2020, on why).
In float32 on normal values, measured against float64: errors of 0.7e-6 of the root mean square of the result, the
largest 1.5e-6 of its largest value, for all three products; three times those of F(2x2, 3x3).

How the sums are written matters, as XLA fuses everything that it can. A transform of both axes at once would add up 36
numbers for each of its results; stacked, the results of the first axis are not fused into the second, and each of the
two is one pass over memory.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.models._blocks import block_size, map_blocks, sum_blocks
from fedjax8.models._conv_forms import Geometry
from fedjax8.types import Array

TAPS, TILE = 3, 4
"""Taps of the kernel, and pixels of output, along each axis."""
SIZE = TILE + TAPS - 1
"""Positions of a tile along each axis."""
BLOCK_BYTES = 2**20
"""Images are computed in blocks whose transforms fit a core's second-level cache, or are as large as the kernel's."""

FEW_TILES = 32
"""With fewer tiles, transforming the kernel costs more than it saves."""
FEW_CHANNELS = 16
"""With fewer channels on either side, transforming images and results costs more than it saves."""


def pays(geometry: Geometry, images: int, channels: int, features: int, dtype: Any) -> bool:
    """Whether these forms cover the convolution, and are worth it; asked on CPUs."""
    tiles = math.prod(map(_tiles, geometry.output))
    return (
        geometry.kernel == (TAPS, TAPS)
        and geometry.stride == geometry.dilation == (1, 1)
        and geometry.groups == 1
        and geometry.precision is None
        and dtype == jnp.float32
        and min(channels, features) >= FEW_CHANNELS
        and images * tiles >= FEW_TILES
        and TAPS**2 * math.prod(geometry.output) >= 2 * SIZE**2 * tiles  # half-empty tiles save too little
    )


def _matrices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`(A^T [4, 6], G [6, 3], B^T [6, 6])` float32, rows of B^T scaled so that their absolute values add up to 1."""
    points = [0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5)]

    def powers(count: int) -> np.ndarray:
        at_infinity = [0.0] * (count - 1) + [1.0]
        return np.array([[p**i for i in range(count)] for p in points] + [at_infinity])

    image = np.linalg.inv(powers(SIZE)).T
    image[np.abs(image) < 1e-9] = 0
    scale = np.abs(image).sum(axis=1, keepdims=True)
    output, kernel, image = (m.astype(np.float32) for m in (powers(TILE).T, powers(TAPS) * scale, image / scale))
    return output, kernel, image


OUTPUT, KERNEL, IMAGE = _matrices()


def _combine(weights: Sequence[np.ndarray] | np.ndarray, parts: Sequence[Array]) -> Array:
    """The sum of the parts with these weights; those of weight 0 are left out."""
    terms = [weight * part for weight, part in zip(weights, parts, strict=True) if np.any(weight)]
    return functools.reduce(jnp.add, terms)


def _first(matrix: np.ndarray, parts: Sequence[Array]) -> Array:
    """`matrix @ parts`, the results stacked along a new first axis."""
    return jnp.stack([_combine(weights, parts) for weights in matrix])


def _second(matrix: np.ndarray, parts: Sequence[Array], axis: int) -> Array:
    """`matrix @ parts`, the results along a new axis, as one expression: the matrix's columns lie along that axis."""
    shape = [-1 if i == axis else 1 for i in range(parts[0].ndim + 1)]
    columns = [column.reshape(shape) for column in matrix.T]
    return _combine(columns, [jnp.expand_dims(part, axis) for part in parts])


def _tiles(length: int) -> int:
    return -(-length // TILE)


def _padded(x: Array, low: Sequence[int], size: Sequence[int]) -> Array:
    """The images with `low` zeros before them and as many after them as make this size; negative numbers cut."""
    high = [want - have - before for want, have, before in zip(size, x.shape[1:3], low, strict=True)]
    edges = [(0, 0, 0), *((a, b, 0) for a, b in zip(low, high, strict=True)), (0, 0, 0)]
    return lax.pad(x, jnp.zeros((), x.dtype), edges)


def _of_image(x: Array, low: Sequence[int], tiles: tuple[int, int]) -> Array:
    """B^T x B, `[6 * 6, B * tiles, I]`, of images with `low` zeros before them."""

    def views(x, axis, count):
        return [lax.slice_in_dim(x, i, i + TILE * (count - 1) + 1, TILE, axis) for i in range(SIZE)]

    x = _padded(x, low, [TILE * count + TAPS - 1 for count in tiles])
    x = _first(IMAGE, views(x, 1, tiles[0]))
    x = _second(IMAGE, views(x, 3, tiles[1]), 1)
    return x.reshape(SIZE * SIZE, -1, x.shape[-1])


def _of_kernel(kernel: Array) -> Array:
    """G k G^T, `[6 * 6, I, O]`."""
    kernel = _first(KERNEL, list(kernel))
    kernel = _second(KERNEL, [kernel[:, i] for i in range(TAPS)], 1)
    return kernel.reshape(SIZE * SIZE, *kernel.shape[2:])


def _of_cotangent(g: Array, tiles: tuple[int, int]) -> Array:
    """A dy A^T, `[6 * 6, B * tiles, O]`."""
    g = _padded(g, (0, 0), [TILE * count for count in tiles])
    g = g.reshape(len(g), tiles[0], TILE, -1, g.shape[-1])
    g = _first(OUTPUT.T, [g[:, :, i] for i in range(TILE)])
    g = g.reshape(*g.shape[:3], tiles[1], TILE, g.shape[-1])
    g = _second(OUTPUT.T, [g[:, :, :, :, i] for i in range(TILE)], 1)
    return g.reshape(SIZE * SIZE, -1, g.shape[-1])


def _to_output(products: Array, images: int, tiles: tuple[int, int]) -> Array:
    """A^T m A, `[B, 4 * tiles, 4 * tiles, O]`, of products m `[6 * 6, B * tiles, O]`."""
    products = products.reshape(SIZE, SIZE, images, *tiles, -1)
    rows = _first(OUTPUT, list(products)).transpose(1, 2, 3, 0, 4, 5)  # column, image, tile, row, tile, feature
    y = _second(OUTPUT, list(rows), 4)
    return y.reshape(images, TILE * tiles[0], TILE * tiles[1], -1)


def _block_size(images: int, tiles: tuple[int, int], channels: int, features: int, block_bytes: int) -> int:
    """Number of images in a block."""
    numbers = max(block_bytes // (4 * SIZE * SIZE), 2 * channels * features)
    return block_size(images, numbers // (math.prod(tiles) * (channels + features)))


def _correlate(x: Array, kernel: Array, low: Sequence[int], output: tuple[int, int]) -> Array:
    """y of images with `low` zeros before them and as many as it takes after them."""
    tiles = (_tiles(output[0]), _tiles(output[1]))
    channels, features = kernel.shape[2:]
    size = _block_size(len(x), tiles, channels, features, BLOCK_BYTES)
    kernel = _of_kernel(kernel)

    def block(x: Array) -> Array:
        y = _to_output(jnp.matmul(_of_image(x, low, tiles), kernel), size, tiles)
        return y[:, : output[0], : output[1]]

    return map_blocks(block, size, x)


def forward(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y, the convolution of images with a kernel."""
    return _correlate(x, kernel, [low for low, _ in geometry.padding], geometry.output)


def input_gradient(geometry: Geometry, g: Array, kernel: Array) -> Array:
    """dx: g convolved with the kernel turned around, channels and features exchanged."""
    low = [TAPS - 1 - low for low, _ in geometry.padding]
    return _correlate(g, kernel[::-1, ::-1].swapaxes(2, 3), low, geometry.image)


def kernel_gradient(geometry: Geometry, x: Array, g: Array) -> Array:
    """dk, the gradient of the kernel."""
    tiles = (_tiles(geometry.output[0]), _tiles(geometry.output[1]))
    size = _block_size(len(x), tiles, x.shape[-1], g.shape[-1], 2 * BLOCK_BYTES)  # fewer sums are worth more

    def block(x: Array, g: Array) -> Array:
        image = _of_image(x, [low for low, _ in geometry.padding], tiles)
        return lax.dot_general(image, _of_cotangent(g, tiles), (((1,), (1,)), ((0,), (0,))))

    dk = sum_blocks(block, size, x, g).reshape(SIZE, SIZE, x.shape[-1], g.shape[-1])
    dk = _first(KERNEL.T, list(dk))
    return _second(KERNEL.T, [dk[:, i] for i in range(SIZE)], 1)
