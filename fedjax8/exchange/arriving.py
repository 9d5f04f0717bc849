"""Contributions as they arrive in an exchange: their totals, and the guards of sums."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.types import Array, Key, PyTree


class Arrived(NamedTuple):
    """Totals of an exchange."""

    tree: PyTree
    """Shapes of one contribution."""
    taken: tuple[PyTree, PyTree]
    """Sum and maximum of the addends that `take` gave."""
    clients: Array
    report: dict[str, Array]


def everything(decoded: PyTree) -> tuple[PyTree, Array, dict[str, Array]]:
    """The contribution as it is, admitted."""
    return decoded, jnp.array(True), {}


def summable(report: PyTree) -> PyTree:
    """Numbers for the log, no further from 0 than their sum over clients can bear."""

    def cut(x: Array) -> Array:
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        return jnp.clip(x, -trees.LARGEST_SUM, trees.LARGEST_SUM) if floating else x

    return jax.tree.map(lambda x: cut(jnp.asarray(x)), report)


def zero_unless(condition: Array, tree: PyTree) -> PyTree:
    """`tree` where the condition holds, zeros elsewhere."""
    return trees.select(condition, tree, trees.zeros_like(tree))


def client_keys(key: Key, client: Array) -> tuple[Key, Key]:
    """Keys of a client's training, and of the encoding of its contribution."""
    train, encode = jax.random.split(jax.random.fold_in(key, client))
    return train, encode
