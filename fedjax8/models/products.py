"""The product of a layer, y = x * kernel, as three bilinear functions, so that something else can stand in for it.

    forward (x, k) -> y,      input gradient (dy, k) -> dx,      kernel gradient (x, dy) -> dk

Each is a transpose of the others. They take float32 arrays or 8-bit floats, also of two different types, and sum in
float32: 8-bit operands go to `dot_general` as they are, with `preferred_element_type=float32`, so that hardware with
8-bit matrix units can use them. Where there is no matrix product (depthwise convolutions, and the shapes that only
lax's convolution covers) 8-bit operands are widened first.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.models import _conv_forms as forms
from fedjax8.models import conv, dense
from fedjax8.types import Array, Multiply, Product

Axes = tuple[Sequence[int], Sequence[int]]


def _is_8_bit(x: Array) -> bool:
    return jnp.dtype(x.dtype).itemsize == 1


def _contract(x: Array, kernel: Array, dimension_numbers: tuple[Axes, Axes], precision: Any) -> Array:
    if not (_is_8_bit(x) or _is_8_bit(kernel)):
        return lax.dot_general(x, kernel, dimension_numbers, precision=precision)
    return forms.contract_8_bit(x, kernel, dimension_numbers)


def _kept(ndim: int, *used: Sequence[int]) -> list[int]:
    """The axes that are neither contracted nor batched."""
    return [axis for axis in range(ndim) if all(axis not in axes for axes in used)]


def dot_product(x_ndim: int, kernel_ndim: int, dimension_numbers: tuple[Axes, Axes], precision: Any = None) -> Product:
    """The `Product` of `lax.dot_general` with these dimension numbers."""
    (x_sum, k_sum), (x_batch, k_batch) = dimension_numbers
    x_kept, k_kept = _kept(x_ndim, x_sum, x_batch), _kept(kernel_ndim, k_sum, k_batch)
    y_batch = list(range(len(x_batch)))
    y_x = list(range(len(x_batch), len(x_batch) + len(x_kept)))
    y_k = list(range(len(x_batch) + len(x_kept), len(x_batch) + len(x_kept) + len(k_kept)))

    def transposed(y_side, other_kept, other_batch, other_sum, own_batch, own_kept, own_sum, other_is_left):
        """`(dy, other) -> d own`; the axes come out as batch, own kept, own summed, and are put in place."""
        in_order = [own for _, own in sorted(zip(other_sum, own_sum, strict=True))]
        places = np.argsort([*own_batch, *own_kept, *in_order])

        def product(dy: Array, other: Array) -> Array:
            d = _contract(dy, other, ((y_side, other_kept), (y_batch, other_batch)), precision)
            return d.transpose(places)

        return (lambda a, b: product(b, a)) if other_is_left else product

    return Product(
        forward=lambda x, kernel: _contract(x, kernel, dimension_numbers, precision),
        input_gradient=transposed(y_k, k_kept, k_batch, k_sum, x_batch, x_kept, x_sum, False),
        kernel_gradient=transposed(y_x, x_kept, x_batch, x_sum, k_batch, k_kept, k_sum, True),
    )


def widened_product(multiply: Callable[[Array, Array], Array], x_shape: tuple, kernel_shape: tuple) -> Product:
    """The `Product` of any bilinear function of float32 arrays, its transposes found by JAX."""

    def wide(x: Array) -> Array:
        return x.astype(jnp.float32 if _is_8_bit(x) else jnp.promote_types(x.dtype, jnp.float32))

    def gradient(of: int, shape: tuple, fixed: Array, dy: Array) -> Array:
        place = lambda v: multiply(v, wide(fixed)) if of == 0 else multiply(wide(fixed), v)
        y, pull = jax.vjp(place, jnp.zeros(shape, jnp.float32))
        return pull(dy.astype(y.dtype))[0]

    return Product(
        forward=lambda x, kernel: multiply(wide(x), wide(kernel)),
        input_gradient=lambda dy, kernel: gradient(0, x_shape, kernel, dy),
        kernel_gradient=lambda x, dy: gradient(1, kernel_shape, x, dy),
    )


def conv_product(multiply: Callable[..., Array], x: Array, kernel: Array, **settings: Any) -> Product:
    """The `Product` of a convolution of arrays of these shapes, with the settings of `lax.conv_general_dilated`.

    Float32 goes to `multiply`, which has the results of lax; 8-bit operands become patches and a matmul.
    """
    plain = widened_product(functools.partial(multiply, **settings), x.shape, kernel.shape)
    geometry = conv.geometry_of(x, kernel, **settings)
    if geometry is None or geometry.groups > 1:
        return plain
    x_shape, kernel_shape = x.shape, kernel.shape
    y_shape = jax.eval_shape(plain.forward, x, kernel).shape

    def forward(x, kernel):
        return forms.forward_patches(geometry, geometry.images(x), geometry.taps(kernel)).reshape(y_shape)

    def input_gradient(dy, kernel):
        return forms.input_gradient_taps(geometry, in_2d(dy), geometry.taps(kernel)).reshape(x_shape)

    def kernel_gradient(x, dy):
        return forms.kernel_gradient_patches(geometry, geometry.images(x), in_2d(dy)).reshape(kernel_shape)

    def in_2d(dy):
        return dy.reshape(len(dy), *geometry.output, dy.shape[-1])

    def choose(by_patches, otherwise):
        return lambda a, b: by_patches(a, b) if _is_8_bit(a) else otherwise(a, b)

    return Product(*map(choose, (forward, input_gradient, kernel_gradient), plain))


# What is called instead of `lax.dot_general`, `lax.conv_general_dilated` and `jnp.multiply`, while a layer's product is
# handed over.


def dot_stand_in(multiply: Multiply, path: str, plain: Callable[..., Array] | None) -> Callable[..., Array]:
    """`plain` (lax's where None) with `multiply` doing the product of the layer at `path`."""

    def dot_general(x, kernel, dimension_numbers, precision=None, **settings):
        known = plain in (None, lax.dot_general, dense.dot_general)
        if known and settings.get("preferred_element_type") in (None, jnp.float32):
            product = dot_product(x.ndim, kernel.ndim, dimension_numbers, precision)
            if dense.is_moving(x, kernel, dimension_numbers, precision):
                product = dense.for_large_kernel(product, kernel)
        else:
            settings |= {"dimension_numbers": dimension_numbers, "precision": precision}
            product = widened_product(functools.partial(plain or lax.dot_general, **settings), x.shape, kernel.shape)
        return multiply(path, product, x, kernel)

    return dot_general


def conv_stand_in(multiply: Multiply, path: str, plain: Callable[..., Array] | None) -> Callable[..., Array]:
    """`plain` (lax's where None) with `multiply` doing the product of the layer at `path`."""

    def conv_general_dilated(x, kernel, window_strides, padding, **settings):
        settings = {n: v for n, v in settings.items() if n != "out_sharding"}
        settings |= {"window_strides": window_strides, "padding": padding}
        product = conv_product(plain or lax.conv_general_dilated, x, kernel, **settings)
        return multiply(path, product, x, kernel)

    return conv_general_dilated


def scale_stand_in(multiply: Multiply, path: str, plain: Callable[..., Array]) -> Callable[..., Array]:
    """`plain` with `multiply` doing the product of a number and the kernel at `path`."""
    return lambda one, kernel: multiply(path, widened_product(plain, one.shape, kernel.shape), one, kernel)
