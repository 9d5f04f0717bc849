"""The product of dense layers with large kernels and small batches, for flax layers, on CPUs.

    nn.Dense(features, dot_general=dot_general)

has the results of `jax.lax.dot_general`. Where the kernel is larger than a core's cache and the batch is small, the
time goes into moving the kernel and its gradient, not into multiplying. So the gradient is a written-out sum of outer
products, one for each example,

    dk = x_1 g_1^T + ... + x_B g_B^T,

which XLA fuses into its reader, such as the optimizer's step: a gradient of the kernel's size is neither
written nor read. Everything else goes to lax. Reverse mode only, as for any `jax.custom_vjp`.

A `Product` of such a layer (`for_large_kernel`) has that gradient too, and the number of blocks to read the kernel in.
"""

import functools
import operator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.models._blocks import block_size
from fedjax8.types import Array, Product

LARGE_BYTES = 2 * 2**20
"""Kernels from here on leave the second-level cache of a core before they are read again."""
SMALL_BATCH = 16
"""With more examples multiplying costs more than moving the gradient, and a matmul does that better."""
BLOCK_BYTES = 2**19
"""Bytes of a block of rows, so that the rows, their rounded values and a third array stay in the cache."""


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **settings: Any) -> Array:
    """`jax.lax.dot_general`, with its arguments, results and errors.

    Example:
      >>> from flax import linen as nn
      >>> layer = nn.Dense(128, dot_general=dot_general)
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    if not settings and is_moving(x, kernel, dimension_numbers, precision):
        return _product(x, kernel)
    return lax.dot_general(x, kernel, dimension_numbers, precision=precision, **settings)


def is_moving(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None) -> bool:
    """Whether more time goes into moving the kernel of this product than into multiplying."""
    (contract, batch) = dimension_numbers
    plain = tuple(map(tuple, contract)) == ((1,), (0,)) and not any(map(len, batch)) and x.ndim == kernel.ndim == 2
    return (
        plain
        and precision is None
        and x.dtype == kernel.dtype == jnp.float32
        and jax.default_backend() == "cpu"
        and 0 < len(x) <= SMALL_BATCH
        and kernel.size * 4 >= LARGE_BYTES
    )


def for_large_kernel(product: Product, kernel: Array) -> Product:
    """`product`, which is that of a dense layer, for a kernel `[I, O]` of which `is_moving` holds.

    As it is where the kernel cannot be cut into blocks: a consumer of the whole kernel reads its gradient more than
      once.
    """
    blocks = _blocks(*kernel.shape)
    if blocks == 1:
        return product

    def kernel_gradient(x: Array, dy: Array) -> Array:
        return _outer_products(x, dy) if x.dtype == dy.dtype == jnp.float32 else product.kernel_gradient(x, dy)

    return product._replace(kernel_gradient=kernel_gradient, blocks=blocks)


def _blocks(inputs: int, outputs: int) -> int:
    """The least number of equal blocks of rows that are not too large; 1 if the inputs can only be cut much smaller."""
    fitting = BLOCK_BYTES // (4 * outputs)
    rows = block_size(inputs, fitting)
    return inputs // rows if 4 * rows > fitting else 1


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """y `[B, O]` of x `[B, I]` and kernel `[I, O]`."""
    return x @ kernel


def _gradients(saved, g):
    x, kernel = saved
    return g @ kernel.T, _outer_products(x, g)


def _outer_products(x: Array, g: Array) -> Array:
    return functools.reduce(operator.add, [x[i][:, None] * g[i][None] for i in range(len(x))])


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _gradients)
