"""Blocks of a tree cut into pieces of limited size, and back, for `skip` to choose among."""

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8.types import Array


class Slice(NamedTuple):
    """Some or all of a leaf. Static."""

    name: str
    """Path name of the leaf."""
    axis: int | None = None
    """Which axis of the leaf as a matrix (its last axis against all else), or as a vector, is cut; None: all of it."""
    start: int = 0
    stop: int = 0


def cut(block: Mapping[str, Array], limit: int) -> list[tuple[Slice, ...]]:
    """Pieces of a block of float32 leaves, of at most `limit` values each; shapes suffice.

    A block that is small enough is one piece. Of another, each leaf above the limit is cut by itself into about equal
    ranges of rows (of columns, where a single row is too long), the others stay together as far as they fit.
    """
    sizes = {name: math.prod(x.shape) for name, x in block.items()}
    pieces: list[tuple[Slice, ...]] = []
    room = 0
    for name, x in block.items():
        if sizes[name] > limit:
            pieces += _ranges(name, x.shape, limit)
            room = 0
        elif pieces and sizes[name] <= room:
            pieces[-1] += (Slice(name),)
            room -= sizes[name]
        else:
            pieces.append((Slice(name),))
            room = limit - sizes[name]
    return pieces


def _ranges(name: str, shape: tuple[int, ...], limit: int) -> list[tuple[Slice, ...]]:
    rows, columns = _matrix(shape)
    axis = 0 if columns <= limit else 1
    length, width = (rows, columns) if axis == 0 else (columns, rows)
    count = -(-length // max(1, limit // width))
    edges = [length * i // count for i in range(count + 1)]
    return [(Slice(name, axis, a, b),) for a, b in itertools.pairwise(edges)]


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return (shape[0], 1) if len(shape) == 1 else (math.prod(shape[:-1]), shape[-1])


def take(piece: Sequence[Slice], leaves: Mapping[str, Array]) -> dict[str, Array]:
    """Values of a piece, by path name; ranges of matrices as matrices. Of shapes it gives the shapes."""
    return {part.name: _slice(part, leaves[part.name]) for part in piece}


def _slice(part: Slice, x: Array) -> Array:
    if part.axis is None:
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.eval_shape(functools.partial(_slice, part), x)
    matrix = x if x.ndim == 1 else x.reshape(_matrix(x.shape))
    return matrix[part.start : part.stop] if part.axis == 0 else matrix[:, part.start : part.stop]


def join(pieces: Sequence[Sequence[Slice]], taken: Sequence[Mapping[str, Array]], shapes: Mapping) -> dict[str, Array]:
    """The leaves, by path name, joined from the values of all pieces."""
    found: dict[str, list[tuple[Slice, Array]]] = {}
    for piece, values in zip(pieces, taken, strict=True):
        for part in piece:
            found.setdefault(part.name, []).append((part, values[part.name]))
    leaves = {}
    for name, parts in found.items():
        axis = parts[0][0].axis
        whole = parts[0][1] if axis is None else jnp.concatenate([x for _, x in parts], axis)
        leaves[name] = whole.reshape(shapes[name])
    return leaves


def largest_piece(pieces: Sequence[Sequence[Slice]], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Values of the largest piece; 0 for none."""
    return max((count(piece, shapes) for piece in pieces), default=0)


def count(piece: Sequence[Slice], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Values that a piece holds."""
    total = 0
    for part in piece:
        size = math.prod(shapes[part.name])
        if part.axis is not None:
            size = size // _matrix(shapes[part.name])[part.axis] * (part.stop - part.start)
        total += size
    return total
