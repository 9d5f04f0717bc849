"""Unit vectors in the space of a tree's elements, and the products that monitors send."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.keys import random_key
from fedjax8.types import Array, PyTree

_SEED = 0  # every worker, and every run, begins with the same direction


def inner(a: PyTree, b: PyTree) -> Array:
    """float32 <a, b> over the whole tree."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y, dtype=jnp.float32), a, b)
    return sum(jax.tree.leaves(products), jnp.float32(0))


def norm2(tree: PyTree) -> Array:
    """float32 ||tree||^2 over the whole tree."""
    return inner(tree, tree)


def first_direction(params: PyTree) -> PyTree:
    """The direction before there have been two common models: fixed-seed standard normal, normalized over the tree."""
    leaves, structure = jax.tree.flatten(params)
    key = random_key(_SEED)
    drawn = [jax.random.normal(jax.random.fold_in(key, i), jnp.shape(x)) for i, x in enumerate(leaves)]
    drawn = jax.tree.unflatten(structure, drawn)
    return trees.scale(1.0 / jnp.sqrt(norm2(drawn)), drawn)


def direction_of(new: PyTree, old: PyTree, fallback: PyTree) -> PyTree:
    """(new - old) / ||new - old||: the last move of the common model; `fallback` where its length is 0 or not
    finite."""
    moved = trees.subtract(new, old)
    # The largest element first: squares of small updates would vanish in float32.
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(moved)]))
    usable = (largest > 0) & jnp.isfinite(largest)
    scaled = trees.scale(1.0 / jnp.where(usable, largest, 1.0), moved)
    unit = trees.scale(1.0 / jnp.sqrt(jnp.where(usable, norm2(scaled), 1.0)), scaled)
    return trees.select(usable, unit, fallback)


def constant(value: Callable[[Array], Array] | float) -> Callable[..., Array]:
    """An `estimate` that depends on the number of the step alone, or on nothing."""
    return lambda reduced, step: jnp.float32(value(step) if callable(value) else value)
