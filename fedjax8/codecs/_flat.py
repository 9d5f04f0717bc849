"""The float32 leaves of a tree as vectors, and back, for codecs that treat a model as one vector."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.types import Array, PyTree, Ratio

SCOPES = ("model", "tensor")


class Layout(NamedTuple):
    """Places of vectors in their tree. Static: both sides know it."""

    structure: Any
    """Structure of the tree."""
    chosen: tuple[int, ...]
    """Numbers of the leaves that were taken, in tree order."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes."""
    scope: str
    """`model`: one vector of all of them; `tensor`: a vector each."""


def flatten(
    tree: PyTree, scope: str = "model", choose: Callable[[str, Array], bool] = lambda name, x: True
) -> tuple[tuple[Array, ...], tuple[Array, ...], Layout]:
    """(float32 vectors, the other leaves, layout). Empty leaves, and leaves that are not float32 or not chosen, are
    among the others."""
    leaves, structure = jax.tree.flatten(tree)
    chosen = tuple(
        i
        for i, (name, x) in enumerate(trees.named_leaves(tree).items())
        if trees.is_float32(x) and x.size and choose(name, x)
    )
    layout = Layout(structure, chosen, tuple(leaves[i].shape for i in chosen), scope)
    others = tuple(x for i, x in enumerate(leaves) if i not in set(chosen))
    vectors = tuple(leaves[i].reshape(-1) for i in chosen)
    if scope == "model" and vectors:
        vectors = (jnp.concatenate(vectors),)
    return vectors, others, layout


def unflatten(vectors: Sequence[Array], others: Sequence[Array], layout: Layout) -> PyTree:
    """The tree that `flatten` took apart."""
    sizes = [math.prod(shape) for shape in layout.shapes]
    if layout.scope == "model" and vectors:
        vectors = jnp.split(vectors[0], [sum(sizes[: i + 1]) for i in range(len(sizes) - 1)])
    put = dict(zip(layout.chosen, (v.reshape(s) for v, s in zip(vectors, layout.shapes, strict=True)), strict=True))
    rest = iter(others)
    return jax.tree.unflatten(
        layout.structure, [put[i] if i in put else next(rest) for i in range(layout.structure.num_leaves)]
    )


def group_sizes(layout: Layout) -> tuple[int, ...]:
    """Lengths of the vectors."""
    sizes = tuple(math.prod(shape) for shape in layout.shapes)
    return (sum(sizes),) if layout.scope == "model" and sizes else sizes


def scatter(size: int, at: Array, values: Array) -> Array:
    """Vector of zeros but for `values` at the ascending positions `at`."""
    return jnp.zeros(size).at[at].set(values, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")


def check_scope(scope: str) -> None:
    """Raises ValueError unless `scope` is one of `SCOPES`."""
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {', '.join(SCOPES)}; got {scope!r}")


def number_kept(size: int, share: float, count: int | None) -> int:
    """Number of values sent of `size`: `count`, or the nearest number to the share; at least 1, at most all."""
    return min(size, max(1, round(share * size) if count is None else count))


def check_kept(share: float, count: int | None) -> None:
    """Raises ValueError unless they give a number of values to send."""
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}")
    if count is not None and count < 1:
        raise ValueError(f"count must be at least 1, or None to go by share; got {count!r}")


def squared_error(tree: PyTree, decoded: PyTree) -> dict[str, Ratio]:
    """`quantization_error`: squared error over squared norm of the float32 leaves."""
    pairs = [(a, b) for a, b in zip(*map(jax.tree.leaves, (tree, decoded)), strict=True) if trees.is_float32(a)]
    if not pairs:
        return {}
    error = jnp.asarray(sum(trees.squared_distance(a, b) for a, b in pairs))
    return {"quantization_error": Ratio(error, jnp.asarray(sum(jnp.sum(jnp.square(a)) for a, _ in pairs)))}
