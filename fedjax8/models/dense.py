"""The product of dense layers with large kernels and small batches, for flax layers, on CPUs.

    nn.Dense(features, dot_general=dot_general)

computes what `jax.lax.dot_general` computes. Where the kernel is larger than a core's cache and the batch is small, the
time goes into moving the kernel and its gradient, not into multiplying. So the gradient is a written-out sum of outer
products, one for each example,

    dk = x_1 g_1^T + ... + x_B g_B^T,

which XLA computes inside whatever reads it, such as the optimizer's step: a gradient of the kernel's size is neither
written nor read. Everything else goes to lax. Reverse mode only, as for any `jax.custom_vjp`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.types import Array

LARGE_BYTES = 2 * 2**20
"""Kernels from here on leave the second-level cache of a core before they are read again."""
SMALL_BATCH = 16
"""With more examples multiplying costs more than moving the gradient, and a matmul does that better."""


def dot_general(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None, **settings: Any) -> Array:
    """`jax.lax.dot_general`, with its arguments, results and errors.

    Example:
      >>> from flax import linen as nn
      >>> layer = nn.Dense(128, dot_general=dot_general)
    """
    (contract, batch) = dimension_numbers
    plain = tuple(map(tuple, contract)) == ((1,), (0,)) and not any(map(len, batch)) and x.ndim == kernel.ndim == 2
    settings = {name: value for name, value in settings.items() if value is not None}
    if (
        plain
        and not settings
        and precision is None
        and x.dtype == kernel.dtype == jnp.float32
        and jax.default_backend() == "cpu"
        and len(x) <= SMALL_BATCH
        and kernel.size * 4 >= LARGE_BYTES
    ):
        return _product(x, kernel)
    return lax.dot_general(x, kernel, dimension_numbers, precision=precision, **settings)


@jax.custom_vjp
def _product(x: Array, kernel: Array) -> Array:
    """y `[B, O]` of x `[B, I]` and kernel `[I, O]`."""
    return x @ kernel


def _gradients(saved, g):
    x, kernel = saved
    return g @ kernel.T, sum(x[i][:, None] * g[i][None] for i in range(len(x)))


_product.defvjp(lambda x, kernel: (_product(x, kernel), (x, kernel)), _gradients)
