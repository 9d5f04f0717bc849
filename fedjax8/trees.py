"""Pytree helpers that optax and jax lack: paths, clips beside their parameter, sizes, selection."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.types import Array, PyTree, Sections

CLIP_SUFFIX = "_clip"
"""A leaf `kernel_clip` beside a leaf `kernel` is the clipping value (alpha) of that kernel.

A clip is a float32 scalar.
"""


def path_name(path: tuple) -> str:
    """Key path of a leaf as text, `params/Dense_0/kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: PyTree, is_leaf: Callable | None = None) -> dict[str, Array]:
    """Leaves by path name, in tree order."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def map_named(f: Callable, tree: PyTree, is_leaf: Callable | None = None) -> PyTree:
    """Tree of `f(path name, leaf)`."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: f(path_name(path), leaf), tree, is_leaf=is_leaf)


def is_clip(name: str) -> bool:
    """Whether the leaf of that path name is a clipping value and not a weight."""
    return name.endswith(CLIP_SUFFIX)


def clips_of(leaves: Mapping[str, Array]) -> dict[str, str]:
    """Path name of each leaf that has a clip beside it, to that of the clip."""
    return {name: name + CLIP_SUFFIX for name in leaves if name + CLIP_SUFFIX in leaves}


def num_bytes(tree: PyTree) -> int:
    """Bytes of all leaves in their dtypes (a Python int; works on `ShapeDtypeStruct`s)."""
    return sum(int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


ALWAYS = ""
"""Name of the piece of a message that is always sent."""


def pieces(message: PyTree) -> dict[str, tuple[int, Array]]:
    """Pieces of a message: {name: (bytes, uint32 1 if it is sent and else 0)}.

    The first piece, `ALWAYS`, is sent in every message; the others are parts of `Sections`, by path.
    """
    return _pieces(message, ALWAYS, jnp.uint32(1))


def _pieces(tree: PyTree, prefix: str, there: Array) -> dict[str, tuple[int, Array]]:
    is_sections = lambda x: isinstance(x, Sections)
    always, others = 0, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_sections):
        if not is_sections(leaf):
            always += num_bytes(leaf)
            continue
        always += num_bytes(leaf.present)
        for i, part in enumerate(leaf.parts):
            bit = leaf.present[i // 8] >> np.uint8(i % 8) & 1
            others |= _pieces(part, f"{prefix}{path_name(path)}:{i}", there * bit)
    return {prefix: (always, there)} | others


def float32_bytes(tree: PyTree) -> int:
    """Bytes of the same tree in a run without quantization: 4 per weight, and no clips."""
    return sum(4 * int(np.prod(leaf.shape)) for name, leaf in named_leaves(tree).items() if not is_clip(name))


def shapes(tree: PyTree) -> PyTree:
    """The tree's shapes and dtypes as `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def is_float32(leaf: Array) -> bool:
    """Whether a leaf holds float32 values, the only ones that codecs change."""
    return leaf.dtype == np.float32


def all_finite(tree: PyTree) -> Array:
    """bool scalar: no NaN and no infinity in any floating leaf."""
    floating = _floating(tree)
    if not floating:
        return jnp.array(True)
    every = lambda: jnp.stack([jnp.isfinite(x).all() for x in floating]).all()
    if jax.default_backend() != "cpu":
        return every()
    # A sum is finite only where all its terms are, and XLA on CPU has a fast one. It may overflow where no term did.
    total = jnp.sum(jnp.stack([jnp.sum(x) for x in floating]))
    return lax.cond(jnp.isfinite(total), lambda: jnp.array(True), every)


LARGEST = 2.0**48
"""The largest norm, about 2.8e14, of a message that is used and of a model that a server keeps.

Squares of values within it, their sums over weighted clients, products of two such values and a server optimizer's
second moments then all have a float32 (up to 2^128), while no model that still learns is anywhere near.
"""
LARGEST_SUM = LARGEST**2 * 16
"""The largest value, 2^100, that one client may add to a sum: 2^27 clients may do so."""


def norm(*several: PyTree) -> Array:
    """float32 scalar: the Euclidean norm over all floating leaves of the trees, one that is in several of them once.

    At least the largest magnitude, to rounding; NaN or infinite where a value is not finite or a square has no float32.
    """
    leaves = {id(x): x for x in _floating(several)}.values()
    return jnp.sqrt(sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in leaves), jnp.float32(0)))


def within_bounds(*several: PyTree) -> Array:
    """bool scalar: no NaN, no infinity, and a `norm` of at most `LARGEST`."""
    return norm(*several) <= LARGEST


def summable(tree: PyTree) -> Array:
    """bool scalar: magnitudes of all floating leaves add up to at most `LARGEST_SUM`; false for NaN and infinity."""
    return sum((jnp.sum(jnp.abs(x)) for x in _floating(tree)), jnp.float32(0)) <= LARGEST_SUM


def still_finite(new: PyTree, old: PyTree) -> Array:
    """bool scalar: nothing became NaN or infinite. Values that were infinite before, such as a threshold, may stay
    so."""

    def apart() -> Array:
        same = [jnp.all(jnp.isfinite(x) | (x == y)) for x, y in zip(*map(_floating, (new, old)), strict=True)]
        return jnp.stack(same).all()

    return lax.cond(all_finite(new), lambda: jnp.array(True), apart) if _floating(new) else jnp.array(True)


def _floating(tree: PyTree) -> list[Array]:
    return [x for x in map(jnp.asarray, jax.tree.leaves(tree)) if jnp.issubdtype(x.dtype, jnp.floating)]


def squared_distance(a: Array, b: Array) -> Array:
    """The sum of (a - b)^2, a scalar."""
    difference = a - b
    # The selection keeps XLA on CPU from a library's sum, which is slow at subtracting: half the time.
    return jnp.sum(jnp.where(difference != 0, jnp.square(difference), 0.0))


def select(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Leafwise `where` with one scalar condition."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), if_true, if_false)


def add(a: PyTree, b: PyTree) -> PyTree:
    """a + b."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """a - b. With a new and b old this is an update."""
    return jax.tree.map(jnp.subtract, a, b)


def as_dtype(mean: Array, dtype: np.dtype) -> Array:
    """A mean in the dtype of the averaged values; integers to the nearest."""
    return mean.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else jnp.round(mean).astype(dtype)


def scale(factor: Array | float, tree: PyTree) -> PyTree:
    """factor * tree."""
    return jax.tree.map(lambda x: factor * x, tree)


def zeros_like(tree: PyTree) -> PyTree:
    """Tree of zeros; also from `ShapeDtypeStruct`s."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)
