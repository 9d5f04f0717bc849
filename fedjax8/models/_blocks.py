"""Working off a batch of images block by block, so that what is computed on the way fits a cache."""

from collections.abc import Callable

from jax import lax

from fedjax8.types import Array


def block_size(images: int, fitting: int) -> int:
    """The largest divisor of `images` up to `fitting`, and at least 1."""
    return max(size for size in range(1, max(1, min(fitting, images)) + 1) if images % size == 0)


def map_blocks(form: Callable[[Array], Array], size: int, x: Array) -> Array:
    """The form's results, one per image, on `size` images at a time; `size` divides their number."""
    if size == len(x):
        return form(x)
    out = lax.map(form, x.reshape(-1, size, *x.shape[1:]))
    return out.reshape(-1, *out.shape[2:])


def sum_blocks(form: Callable[[Array, Array], Array], size: int, a: Array, b: Array) -> Array:
    """The sum of the form's results on `size` images of a and b at a time."""
    if size == len(a):
        return form(a, b)
    a, b = (v.reshape(-1, size, *v.shape[1:]) for v in (a, b))
    first = form(a[0], b[0])  # not zeros: under shard_map the sum must vary over devices from the start
    return lax.fori_loop(1, len(a), lambda i, total: total + form(a[i], b[i]), first)
