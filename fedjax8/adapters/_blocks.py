"""The product of a layer on an FP8 grid, some rows of its kernel at a time: for kernels larger than a core's cache.

With r one block of the inputs, and t the terms of a clip's gradient (`straight_through.clip_terms`),

    y            = sum of Q(x)[:, r] Q(w[r])                        forward
    dx[:, r]     = dy Q(w[r])^T                                     backward
    alpha dalpha = sum of dy * z,  z = sum of Q(x)[:, r] t(w[r])

Rounded rows stay in the cache and are gone with their block. Between memory and core a step moves as much as in
float32: the kernel forward, again backward, and in the optimizer's step, into which XLA takes the gradient
(`models/dense.py`). Taking the clip's gradient from a product costs a product, but that of kernel gradient and terms
would have to be written for the sum to read.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from fedjax8 import xla_cpu
from fedjax8.types import Array, Product

Rounded = Callable[[Array], Array]


def forward(product: Product, x: Array, kernel: Array, rounded: Rounded) -> Array:
    """y `[B, O]` of inputs `[B, I]` that are on their grid, and a kernel `[I, O]` that `rounded` puts on its own."""

    def add(number, y):
        return y + product.forward(_inputs(x, number, product.blocks), rounded(_rows(kernel, number, product.blocks)))

    return lax.fori_loop(0, product.blocks, add, jnp.full((len(x), kernel.shape[1]), xla_cpu.zero(x, kernel)))


def backward(
    product: Product,
    x: Array,
    kernel: Array,
    rounded: Rounded,
    kernel_terms: Callable[[Array, Array], Array],
    input_terms: Array | None,
    dy: Array | None,
) -> tuple[Array, Array | None, Array | None]:
    """Terms of the gradients of clips and inputs, all in one pass over the kernel.

    Args:
      kernel_terms: t of rows of the kernel and of the same rows rounded.
      input_terms: `[B, I]`, or None.
      dy: `[B, O]`, or None where dx is not wanted.

    Returns:
      Q(x) t(w) `[B, O]`; input_terms Q(w) `[B, O]` and dx `[B, I]`, each None where its argument is None.
    """
    blocks, size = product.blocks, len(kernel) // product.blocks

    def add(number, sums):
        of_kernel, of_input, dx = sums
        rows = _rows(kernel, number, blocks)
        on_grid = rounded(rows)
        of_kernel += product.forward(_inputs(x, number, blocks), kernel_terms(rows, on_grid))
        if input_terms is not None:
            of_input += product.forward(_inputs(input_terms, number, blocks), on_grid)
        if dy is not None:
            dx = lax.dynamic_update_slice(dx, product.input_gradient(dy, on_grid), (0, number * size))
        return of_kernel, of_input, dx

    zero = xla_cpu.zero(*(array for array in (x, kernel, input_terms, dy) if array is not None))
    nothing = jnp.full((len(x), kernel.shape[1]), zero)
    to_sum, to_fill = None if input_terms is None else nothing, None if dy is None else jnp.full(x.shape, zero)
    return lax.fori_loop(0, blocks, add, (nothing, to_sum, to_fill))


def _rows(kernel: Array, number: Array, blocks: int) -> Array:
    size = len(kernel) // blocks
    return lax.dynamic_slice_in_dim(kernel, number * size, size)


def _inputs(x: Array, number: Array, blocks: int) -> Array:
    size = x.shape[1] // blocks
    return lax.dynamic_slice_in_dim(x, number * size, size, axis=1)
