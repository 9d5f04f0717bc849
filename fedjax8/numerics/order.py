"""Sorting many short columns, for statistics over clients such as a median.

    sorted_rows(x)[r, p] = the r-th smallest of x[:, p]

XLA's sort for CPU compares one pair at a time: 50 rows of 1.6 million columns take it 14 s on one core. A bitonic
network (Batcher 1968) is min and max of whole rows and takes 0.5 s, in blocks of columns that stay in the cache.
Accelerators use their own sort.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.types import Array

BLOCK = 512
"""Columns sorted at a time: 64 rows of them are 128 KiB, and about fastest (of 2048 columns half as fast)."""


def sorted_rows(x: Array) -> Array:
    """Rows `[C, p]` such that every column ascends; float32 without NaN.

    Example:
      >>> sorted_rows(jnp.float32([[3, 1], [2, 5], [1, 0]])).tolist()
      [[1.0, 0.0], [2.0, 1.0], [3.0, 5.0]]
    """
    if jax.default_backend() != "cpu":
        return jnp.sort(x, axis=0)
    return _bitonic(x)


def over_sorted_columns(f: Callable[[Array], Array], x: Array) -> Array:
    """`f(sorted_rows(block))` `[p]` for blocks `[C, p]` of the columns of x `[C, P]`, side by side: `[P]`.

    No sorted copy of the whole is made on CPU.
    """
    columns = x.shape[1]
    if columns <= BLOCK or jax.default_backend() != "cpu":
        return f(sorted_rows(x))
    x = jnp.pad(x, ((0, 0), (0, -columns % BLOCK)))
    one = lambda i: f(sorted_rows(jax.lax.dynamic_slice_in_dim(x, i * BLOCK, BLOCK, axis=1)))
    return jax.lax.map(one, jnp.arange(x.shape[1] // BLOCK)).reshape(-1)[:columns]


def _bitonic(x: Array) -> Array:
    count = len(x)
    size = 1 << max(0, count - 1).bit_length()
    x = jnp.concatenate([x, jnp.full((size - count, *x.shape[1:]), jnp.inf, x.dtype)])
    merges = [1 << i for i in range(1, size.bit_length())]  # lengths of the runs that each makes
    for run, step in [(merge, merge >> i) for merge in merges for i in range(1, merge.bit_length())]:
        pairs = x.reshape(size // (2 * step), 2, step, *x.shape[1:])
        ascends = (np.arange(len(pairs)) * 2 * step & run == 0).reshape(-1, *(1,) * x.ndim)
        low, high = jnp.minimum(pairs[:, 0], pairs[:, 1]), jnp.maximum(pairs[:, 0], pairs[:, 1])
        x = jnp.stack([jnp.where(ascends, low, high), jnp.where(ascends, high, low)], axis=1).reshape(x.shape)
    return x[:count]
