"""Convolution for flax layers that stays fast inside loops and with one kernel per client.

    nn.Conv(features, (3, 3), conv_general_dilated=conv_general_dilated)

has the results of `jax.lax.conv_general_dilated`, computed in another way, because two things slow a simulator of many
small clients down: XLA's derivative of a convolution for the kernel is slow on CPUs (tens of times slower than its
forward pass), and `jax.vmap` over per-client kernels turns a convolution into a grouped one, which is slow everywhere.

With image x, kernel k and cotangent g, each of the three bilinear products of training has its own form. On CPUs:

- Kernels of 3x3 with stride 1 and enough channels take Winograd's filters (`_winograd.py`), for all three. Else:
- y = x * k is lax's convolution; for few channels, a matmul of the kernel with patches whose pixels come last, or a sum
  of shifted images.
- dx is one matmul of g with the kernel, whose results are added where the taps overlap.
- dk is a forward convolution of x with g, batch and channels exchanged; for few channels, a matmul with the patches.
- Large batches are computed in blocks of images that fit the caches; under `vmap`, clients one after the other.

Elsewhere they are lax's three convolutions, and under `vmap` over kernels a batched matmul with patches (for dx: the
taps above).

With one channel per group it is a sum of shifted images (`_depthwise.py`) on every platform.

All three are derivatives of each other, so reverse-mode derivatives of any order use the fast forms. Forward mode
(`jax.jvp`) is not defined, as for any `jax.custom_vjp`. The platform is `jax.default_backend()` when the function is
traced; every form is correct on every platform. One-dimensional convolutions are lifted to two; anything else that the
forms do not cover (dilated inputs, other layouts, three dimensions, integers) goes to lax.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.models import _conv_forms as forms
from fedjax8.models import _winograd as winograd
from fedjax8.models._blocks import block_size, map_blocks, sum_blocks
from fedjax8.models._conv_forms import Geometry
from fedjax8.models._depthwise import depthwise
from fedjax8.types import Array

TAPS_BYTES = 2 * 2**20
"""CPU: images are computed in blocks whose taps fit a core's second-level cache."""
BATCH_BYTES = 12 * 2**20
"""CPU: lax packs patches on the fly and needs no blocks until a batch has far more of them than caches hold."""


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Array:
    """The convolution of images with a kernel: `jax.lax.conv_general_dilated`, with its arguments and errors.

    Args:
      lhs: images, `[B, height, width, channels]` (or `[B, length, channels]`) for the fast forms.
      rhs: kernel, `[height, width, channels / feature_group_count, features]`.

    Returns:
      `[B, height', width', features]` in the dtype of the inputs; sums run in float32 or wider.

    Example:
      >>> from flax import linen as nn
      >>> layer = nn.Conv(8, (3, 3), conv_general_dilated=conv_general_dilated)
    """
    settings = {
        "window_strides": window_strides,
        "padding": padding,
        "lhs_dilation": lhs_dilation,
        "rhs_dilation": rhs_dilation,
        "dimension_numbers": dimension_numbers,
        "feature_group_count": feature_group_count,
        "batch_group_count": batch_group_count,
        "precision": precision,
        "preferred_element_type": preferred_element_type,
    }
    result = jax.eval_shape(functools.partial(lax.conv_general_dilated, **settings), lhs, rhs)  # lax's own checks
    geometry = geometry_of(lhs, rhs, **settings)
    if geometry is None or lhs.dtype.itemsize < 2 or result.dtype != lhs.dtype:
        return lax.conv_general_dilated(lhs, rhs, **settings)
    form = depthwise if 1 < feature_group_count == lhs.shape[-1] else _forward
    return form(geometry, geometry.images(lhs), geometry.taps(rhs)).reshape(result.shape)


def geometry_of(
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
) -> Geometry | None:
    """The geometry of a convolution of arrays of these shapes; None if the forms of this file do not cover it.

    Arguments as for `conv_general_dilated`.
    """
    last = lhs.ndim - 1
    channels_last = (0, last, *range(1, last))
    if (
        lhs.ndim not in (3, 4)
        or lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
        != (channels_last, (last, last - 1, *range(last - 1)), channels_last)
        or math.prod(lhs_dilation or (1,)) != 1
        or batch_group_count != 1
        or not jnp.issubdtype(lhs.dtype, jnp.floating)
        or 0 in (*lhs.shape, *rhs.shape)
    ):
        return None
    dilation = tuple(rhs_dilation or (1,) * (last - 1))
    reach = [(k - 1) * d + 1 for k, d in zip(rhs.shape, dilation, strict=False)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:-1], reach, window_strides, padding)
    sizes = zip(lhs.shape[1:-1], padding, reach, window_strides, strict=True)
    output = [(size + low + high - length) // stride + 1 for size, (low, high), length, stride in sizes]
    if min(output) < 1:
        return None

    def lift(values, one):
        return (*(one,) * (3 - last), *values)

    return Geometry(
        image=lift(lhs.shape[1:-1], 1),
        kernel=lift(rhs.shape[:-2], 1),
        output=lift(output, 1),
        stride=lift(window_strides, 1),
        padding=lift((tuple(p) for p in padding), (0, 0)),
        dilation=lift(dilation, 1),
        groups=feature_group_count,
        precision=precision,
        on_cpu=jax.default_backend() == "cpu",
    )


# The three products. Each is linear in both arguments, and its derivatives are the other two.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(geometry: Geometry, x: Array, kernel: Array) -> Array:
    """y `[B, H, W, O]` of x `[B, h, w, I]` and kernel `[kh, kw, I / groups, O]`."""
    chosen = forms.forward_lax, forms.forward_cpu, winograd.forward, forms.forward_patches
    return _product(geometry, *chosen, BATCH_BYTES)(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _input_gradient(geometry: Geometry, g: Array, kernel: Array) -> Array:
    """dx `[B, h, w, I]` of g `[B, H, W, O]` and the kernel."""
    by_lax, by_taps, by_winograd = forms.input_gradient_lax, forms.input_gradient_taps, winograd.input_gradient
    return _product(geometry, by_lax, by_taps, by_winograd, by_taps, TAPS_BYTES)(g, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _kernel_gradient(geometry: Geometry, x: Array, g: Array) -> Array:
    """dk `[kh, kw, I / groups, O]` of x and g."""
    on_cpu, by_winograd = forms.kernel_gradient_cpu, winograd.kernel_gradient
    chosen = forms.kernel_gradient_lax, on_cpu, by_winograd, forms.kernel_gradient_patches
    return _product(geometry, *chosen, BATCH_BYTES, per_image=False)(x, g)


_forward.defvjp(
    lambda geometry, x, kernel: (_forward(geometry, x, kernel), (x, kernel)),
    lambda geometry, saved, g: (_input_gradient(geometry, g, saved[1]), _kernel_gradient(geometry, saved[0], g)),
)
_input_gradient.defvjp(
    lambda geometry, g, kernel: (_input_gradient(geometry, g, kernel), (g, kernel)),
    lambda geometry, saved, dx: (_forward(geometry, dx, saved[1]), _kernel_gradient(geometry, dx, saved[0])),
)
_kernel_gradient.defvjp(
    lambda geometry, x, g: (_kernel_gradient(geometry, x, g), (x, g)),
    lambda geometry, saved, dk: (_input_gradient(geometry, saved[1], dk), _forward(geometry, saved[0], dk)),
)


def _product(geometry, by_lax, on_cpu, by_winograd, per_client, block_bytes, per_image=True):
    """`(a, b) -> product`: the form for this platform, and under `vmap` a form that needs no grouped convolution.

    `per_image` tells whether the result has a batch of images, like a, or is a sum over them.
    """
    if geometry.groups > 1:
        on_cpu = per_client = _by_group(per_client)
    elif geometry.on_cpu:
        on_cpu = _winograd_or(by_winograd, _in_blocks(on_cpu, block_bytes, per_image), per_image)
    shared = on_cpu if geometry.on_cpu else by_lax

    @jax.custom_batching.custom_vmap
    def product(a, b):
        return shared(geometry, a, b).astype(a.dtype)

    @product.def_vmap
    def _(axis_size, batched, a, b):
        if per_image and batched[0] and not batched[1]:  # one kernel: more images
            out = product(a.reshape(-1, *a.shape[2:]), b)
            return out.reshape(axis_size, -1, *out.shape[1:]), True
        if geometry.on_cpu and geometry.groups == 1:

            def of_client(i):
                return product(*(v[i] if mapped else v for v, mapped in zip((a, b), batched, strict=True)))

            return lax.map(of_client, jnp.arange(axis_size)), True
        axes = tuple(0 if mapped else None for mapped in batched)
        return jax.vmap(functools.partial(per_client, geometry), in_axes=axes)(a, b).astype(a.dtype), True

    return product


def _winograd_or(by_winograd, otherwise, per_image):
    """The form by Winograd's filters where it pays."""

    def chosen(geometry, a, b):
        channels, features = b.shape[2:] if per_image else (a.shape[-1], b.shape[-1])
        pays = winograd.pays(geometry, len(a), channels, features, a.dtype)
        return (by_winograd if pays else otherwise)(geometry, a, b)

    return chosen


def _in_blocks(form, block_bytes, per_image):
    """The form, applied to as many images at a time as have no more than `block_bytes` of patches."""

    def blocked(geometry, a, b):
        channels = b.shape[2] if per_image else a.shape[-1]
        bytes_of_image = 4 * math.prod(geometry.output) * math.prod(geometry.kernel) * channels
        size = block_size(len(a), block_bytes // bytes_of_image)
        if per_image:
            return map_blocks(lambda a: form(geometry, a, b), size, a)
        return sum_blocks(functools.partial(form, geometry), size, a, b)

    return blocked


def _by_group(form):
    """The form for one group, mapped over the groups, which lie in the last axis of arguments and result."""

    def grouped(geometry, a, b):
        a, b = (v.reshape(*v.shape[:-1], geometry.groups, -1) for v in (a, b))
        form_of_group = functools.partial(form, geometry._replace(groups=1))
        out = jax.vmap(form_of_group, in_axes=(a.ndim - 2, b.ndim - 2), out_axes=-2)(a, b)
        return out.reshape(*out.shape[:-2], -1)

    return grouped
