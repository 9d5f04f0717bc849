"""Depthwise convolution: one input channel per group, for `models.conv`.

    y[b, p, o] = sum over taps t of x[b, p * stride + t * dilation, channel of o] * kernel[t, o]

It is computed as that sum of shifted images. Every shifted image is a slice of its own, which XLA fuses with product
and sum; stacked like the patches of other convolutions, taps times image would be written to memory. The gradient for x
adds shifted cotangents. The gradient for the kernel is a loop over taps: written out, every tap would compute anew
whatever XLA fuses with it, such as the derivative of the norm behind. Nothing here needs a grouped convolution, also
with one kernel per client.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.models._conv_forms import Geometry
from fedjax8.types import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def depthwise(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y `[B, H, W, O]` in the dtype of x, of x `[B, h, w, I]` and kernel `[kh, kw, 1, O]`; sums in float32 or wider.

    `geometry` is the result of `conv.geometry_of`.
    """
    return _sum_of_shifted(geometry, _padded_features(geometry, x, kernel), kernel).astype(x.dtype)


def _gradients(geometry, saved, g):
    x, kernel = saved

    def wide_sum(x):
        return _sum_of_shifted(geometry, _padded_features(geometry, x, kernel), kernel)

    padded = _padded_features(geometry, x, kernel)
    g = g.astype(padded.dtype)
    covered = [(n - 1) * s + 1 for n, s in zip(geometry.output, geometry.stride, strict=True)]

    def of_tap(i):
        row, column = jnp.divmod(i, geometry.kernel[1])
        start = (0, row * geometry.dilation[0], column * geometry.dilation[1], 0)
        image = lax.dynamic_slice(padded, start, (len(x), *covered, padded.shape[-1]))
        return jnp.sum(image[:, :: geometry.stride[0], :: geometry.stride[1]] * g, (0, 1, 2))

    dk = lax.map(of_tap, jnp.arange(math.prod(geometry.kernel))).reshape(kernel.shape)
    return jax.linear_transpose(wide_sum, x)(g)[0], dk.astype(kernel.dtype)


depthwise.defvjp(lambda geometry, x, kernel: (depthwise(geometry, x, kernel), (x, kernel)), _gradients)


def _padded_features(geometry, x, kernel):
    """x with its padding, in float32 or wider, every channel once per feature that it gives."""
    edges = [(0, 0, 0), *((low, high, 0) for low, high in geometry.padding), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), edges).astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.repeat(x, kernel.shape[-1] // x.shape[-1], axis=-1)


def _sum_of_shifted(geometry, x, kernel):
    kernel = kernel.astype(x.dtype)

    def shifted(*tap):
        low = [t * d for t, d in zip(tap, geometry.dilation, strict=True)]
        high = [a + (n - 1) * s + 1 for a, n, s in zip(low, geometry.output, geometry.stride, strict=True)]
        return lax.slice(x, (0, *low, 0), (x.shape[0], *high, x.shape[-1]), (1, *geometry.stride, 1))

    rows, columns = map(range, geometry.kernel)
    return sum(shifted(i, j) * kernel[i, j, 0] for i in rows for j in columns)
