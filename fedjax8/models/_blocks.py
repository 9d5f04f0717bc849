"""Computations on images, or on the rows of a kernel, block by block, so that intermediate results fit a cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8 import xla_cpu
from fedjax8.types import Array


def block_size(images: int, fitting: int) -> int:
    """The largest divisor of `images`, or of a number of rows, up to `fitting`, and at least 1."""
    return max(size for size in range(1, max(1, min(fitting, images)) + 1) if images % size == 0)


def map_blocks(form: Callable[[Array], Array], size: int, x: Array) -> Array:
    """The form's results, one per image, on `size` images at a time; `size` divides their number."""
    if size == len(x):
        return form(x)
    out = lax.map(lambda i: form(_block(x, i, size)), jnp.arange(len(x) // size))
    return out.reshape(-1, *out.shape[2:])


def sum_blocks(form: Callable[[Array, Array], Array], size: int, a: Array, b: Array) -> Array:
    """The sum of the form's results on `size` images of a and b at a time."""
    if size == len(a):
        return form(a, b)

    def add(i, total):
        return total + form(_block(a, i, size), _block(b, i, size))

    result = jax.eval_shape(form, a[:size], b[:size])
    return lax.fori_loop(0, len(a) // size, add, jnp.full(result.shape, xla_cpu.zero(a, b).astype(result.dtype)))


def _block(x: Array, i: Array, size: int) -> Array:
    return lax.dynamic_slice_in_dim(x, i * size, size)
