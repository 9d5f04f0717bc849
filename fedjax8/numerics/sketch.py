"""Count sketch (fast AMS): a long vector as a small table, linear, that tells its length and its large entries.

    X[i, j] = sum over p with h_i(p) = j of s_i(p) u[p]         i < rows, j < columns
    ||u||^2 ~ M2(X) = median over i of sum_j X[i, j]^2          u[p] ~ median over i of s_i(p) X[i, h_i(p)]

with a bucket h_i(p) and a sign s_i(p) = +-1 by hashing the index p, so no table of them is kept. Alon, Matias, Szegedy,
"The space complexity of approximating the frequency moments" (1999); Charikar, Chen, Farach-Colton, "Finding frequent
items in data streams" (2002); with buckets, Cormode, Garofalakis, "Sketching streams through the net" (2005).

The hash family is this project's own, made so that nothing is scattered. With p = block * columns + position,

    h_i(p) = (position + r_i(block)) mod columns,  r_i(block) = sum_l T_i[l, l-th base-16 digit],  T_i[l, 0] = 0

that is, blocks are rotated and added, sixteen at a time: first those that differ in the lowest digit, then their sums.
T comes from hashed words, and bit i of one hashed word per index is the sign in row i.

Why the usual bounds hold, T and signs taken as random:
- Two indices of one block never share a bucket. Those of different blocks differ in some digit; of the two entries of T
  there at least one is random and independent of all else in the difference of their buckets, so they share one with
  probability 1 / columns (at most 2**-32 more: words are reduced modulo `columns`).
- A row's sum of squares is ||u||^2 plus s(p) s(q) u[p] u[q] over ordered pairs p != q that share a bucket. Signs are
  independent of buckets, so each term has mean 0, and two terms are correlated only if they are of one pair: the
  variance is 2 sum u[p]^2 u[q]^2 P(share) <= 2 ||u||^4 / columns, whatever u is. That whole blocks may meet at once
  makes no difference to it. (Of the signs, independence of any four is used, as in the paper of 1999.)
- Likewise s_i(p) X[i, h_i(p)] has mean u[p] and variance at most ||u||^2 / columns.
- Rows are independent, so the median is off by a constant times 1 / sqrt(columns) with probability falling
  exponentially in `rows`.

Hashes depend on (seed, rows, columns, p) alone: sketches made by anyone with one seed may be added and averaged, and a
tree may be sketched in parts, each at its offset among all elements. Elements are counted leaf by leaf in tree order.
Trees of more than about a million elements are worked through in segments, so the memory beside them stays small.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fedjax8.errors import UserError
from fedjax8.keys import random_key
from fedjax8.numerics.dither import hash_bits

Shifts = jax.Array | np.ndarray

_RADIX_BITS = 4
_RADIX = 1 << _RADIX_BITS
_LEVELS = 32 // _RADIX_BITS  # digits of a block number, which is below 2**32
_SEGMENT = 1 << 20  # elements, about: few enough for a processor's cache, enough to hide the cost of a loop
_SIGN = np.uint32(1 << 31)


class _Hashes(NamedTuple):
    """Hash functions of a seed: `signs`, a key; `shifts` int32 `[level, digit, row]`, T of the module's docstring."""

    signs: jax.Array
    shifts: Shifts


def sketch(tree: object, rows: int, columns: int, seed: int | jax.Array, *, offset: int = 0) -> jax.Array:
    """The float32 table `[rows, columns]` of a tree's elements, linear in them.

    Args:
      tree: float32 arrays of any shapes (others are converted); leaves may be scalars or empty.
      rows: 1 to 32.
      columns: at least 1.
      seed: an integer from 0 up below 2**32, or a uint32 scalar; the same for all whose tables are compared or added.
      offset: number of the first element, for a part of a larger tree.

    Raises:
      ValueError: rows, columns, seed or offset out of range.
      UserError: for indices from 2**32 up, where the hash would repeat.

    Example:
      >>> table = sketch({"a": jnp.zeros(1000), "b": jnp.float32(-3)}, 5, 250, seed=0)
      >>> table.shape, float(second_moment(table))
      ((5, 250), 9.0)
    """
    if isinstance(seed, jax.Array):
        return _sketch(tree, rows, columns, seed, offset)
    return _sketch_static(tree, rows, columns, int(seed), offset)


def _make(tree: object, rows: int, columns: int, seed: int | jax.Array, offset: int) -> jax.Array:
    leaves = [jnp.ravel(jnp.asarray(x)).astype(jnp.float32) for x in jax.tree.leaves(tree)]
    count = sum(x.size for x in leaves)
    hashes = _hashes(rows, columns, seed, offset, count)
    if count == 0:
        return jnp.zeros((rows, columns), jnp.float32)
    start, front, blocks, segment = _layout(offset, count, columns)
    zeros = [jnp.zeros(n, jnp.float32) for n in (front, blocks * columns - front - count)]
    x = jnp.concatenate([zeros[0], *leaves, zeros[1]]).reshape(blocks, columns)
    if segment is None:
        words = hash_bits(hashes.signs, (blocks, columns), start * columns)
        return _fold(x, words, start, hashes.shifts)

    def add(total, part):
        number, x = part
        words = hash_bits(hashes.signs, x.shape, number * np.uint32(x.size))
        folded = _fold(x, words, 0, hashes.shifts)
        return total + _rotate_rows(folded, _rest(hashes.shifts, segment, number, columns)), None

    parts = x.reshape(-1, _RADIX**segment, columns)
    return lax.scan(add, jnp.zeros((rows, columns), jnp.float32), (_numbers(start, parts.shape[0], segment), parts))[0]


_sketch = jax.jit(_make, static_argnames=("rows", "columns", "offset"), inline=True)
_sketch_static = jax.jit(_make, static_argnames=("rows", "columns", "seed", "offset"), inline=True)


def second_moment(table: jax.Array) -> jax.Array:
    """M2, the estimate of the squared length: median over rows of sums of squares; `[..., rows, columns]` to `[...]`.

    Each row's sum has the squared length as its mean and a relative standard deviation of at most sqrt(2 / columns).

    Example:
      >>> float(second_moment(jnp.array([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])))
      4.0
    """
    sums = jnp.sum(jnp.square(table), axis=-1)
    return _median([sums[..., i] for i in range(sums.shape[-1])])


def unsketch(table: jax.Array, like_tree: object, seed: int | jax.Array, *, offset: int = 0) -> Any:
    """The count sketch's estimate of every element: a float32 tree of the structure and shapes of `like_tree`.

    Each is the median over rows of values with the true mean and a standard deviation of at most
    ||u|| / sqrt(columns).

    Args:
      table: float32 `[rows, columns]` from `sketch` with the same seed and offset.
      like_tree: arrays or `ShapeDtypeStruct`s.
      seed: as in `sketch`.
      offset: as in `sketch`.

    Raises:
      ValueError, UserError: as `sketch`.

    Example:
      >>> tree = {"a": jnp.zeros(1000), "b": jnp.float32(-3)}
      >>> float(unsketch(sketch(tree, 5, 250, seed=0), tree, seed=0)["b"])
      -3.0
    """
    likes, structure = jax.tree.flatten(like_tree)
    shapes = tuple(tuple(np.shape(x)) for x in likes)
    if isinstance(seed, jax.Array):
        return jax.tree.unflatten(structure, _unsketch(table, shapes, seed, offset))
    return jax.tree.unflatten(structure, _unsketch_static(table, shapes, int(seed), offset))


def _estimate(table: jax.Array, shapes: tuple[tuple[int, ...], ...], seed: int | jax.Array, offset: int) -> list:
    rows, columns = table.shape
    sizes = [math.prod(shape) for shape in shapes]
    hashes = _hashes(rows, columns, seed, offset, sum(sizes))
    if sum(sizes) == 0:
        return [jnp.zeros(shape, jnp.float32) for shape in shapes]
    start, front, blocks, segment = _layout(offset, sum(sizes), columns)

    def estimates(table, words, start, blocks):
        spread = _spread(table, start, blocks, hashes.shifts)
        return _median([_signed(spread[i], words, i) for i in range(rows)])

    if segment is None:
        flat = estimates(table, hash_bits(hashes.signs, (blocks, columns), start * columns), start, blocks)
    else:
        size = _RADIX**segment

        def one(number):
            words = hash_bits(hashes.signs, (size, columns), number * np.uint32(size * columns))
            back = (columns - _rest(hashes.shifts, segment, number, columns)) % columns
            return estimates(_rotate_rows(table, back), words, 0, size)

        flat = lax.map(one, _numbers(start, blocks // size, segment))
    ends = np.cumsum([front, *sizes])
    flat = flat.reshape(-1)
    return [flat[a:b].reshape(shape) for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True)]


_unsketch = jax.jit(_estimate, static_argnames=("shapes", "offset"), inline=True)
_unsketch_static = jax.jit(_estimate, static_argnames=("shapes", "seed", "offset"), inline=True)


def _hashes(rows: int, columns: int, seed: int | jax.Array, offset: int, count: int) -> _Hashes:
    if not 1 <= rows <= 32 or columns < 1 or offset < 0:
        raise ValueError(f"need 1 <= rows <= 32, columns >= 1 and offset >= 0; got {rows}, {columns}, {offset}")
    if isinstance(seed, int) and not 0 <= seed < 1 << 32:
        raise ValueError(f"seed must be from 0 up below 2**32; got {seed}")
    if offset + count > 1 << 32:
        raise UserError(f"a sketch holds 2**32 elements at most; got {count} at offset {offset}")
    if isinstance(seed, int):
        with jax.ensure_compile_time_eval():
            drawn = _draw(seed, rows, columns)
            return _Hashes(drawn.signs, np.asarray(drawn.shifts))
    return _draw(seed, rows, columns)


def _draw(seed: int | jax.Array, rows: int, columns: int) -> _Hashes:
    signs, shifts = jax.random.split(random_key(seed))
    words = hash_bits(shifts, (_LEVELS, _RADIX, rows)) % np.uint32(columns)
    return _Hashes(signs, words.astype(jnp.int32) * (np.arange(_RADIX, dtype=np.int32) > 0)[:, None])


def _layout(offset: int, count: int, columns: int) -> tuple[int, int, int, int | None]:
    """First block, zeros before the first element, blocks, and the digits that a segment spans (None: in one piece)."""
    digits = 1
    while _RADIX ** (digits + 1) * columns <= _SEGMENT:
        digits += 1
    whole = _RADIX**digits
    pieces = count > whole * columns
    unit = whole * columns if pieces else columns
    front = offset % unit
    units = -(-(front + count) // unit)
    blocks_per_unit = unit // columns
    return offset // unit * blocks_per_unit, front, units * blocks_per_unit, digits if pieces else None


def _numbers(start: int, count: int, segment: int) -> jax.Array:
    """uint32 numbers of `count` segments, the first of which begins with block `start`."""
    return lax.iota(jnp.uint32, count) + np.uint32(start >> (_RADIX_BITS * segment))


def _signed(x: jax.Array, words: jax.Array, row: int) -> jax.Array:
    """x, negated where bit `row` of the word is 1."""
    sign = (words << np.uint32(31 - row)) & _SIGN
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint32) ^ sign, jnp.float32)


def _doubled(x: jax.Array) -> jax.Array:
    """x twice in its last axis: a rotation of x is a slice of it."""
    return jnp.concatenate([x, x], axis=-1)


def _rotated(doubled: jax.Array, shift: jax.Array) -> jax.Array:
    """x rolled by `shift`: entry j moves to (j + shift) mod columns; shift from 0 up below columns."""
    columns = doubled.shape[-1] // 2
    return _cut(doubled, columns - shift)


def _cut(doubled: jax.Array, start: jax.Array) -> jax.Array:
    """The half of the last axis that begins at `start`; plain slices, which compile faster, where that is known."""
    columns = doubled.shape[-1] // 2
    if isinstance(start, jax.Array):
        return lax.dynamic_slice_in_dim(doubled, start, columns, axis=-1)
    return lax.slice_in_dim(doubled, int(start), int(start) + columns, axis=-1)


def _rotate_rows(table: jax.Array, shifts: Shifts) -> jax.Array:
    doubled = _doubled(table)
    return jnp.stack([_rotated(doubled[i], shifts[i]) for i in range(table.shape[0])])


def _rest(shifts: Shifts, level: int, number: int | jax.Array, columns: int) -> Shifts:
    """int32 `[rows]`: rotation by all digits of `number`, the lowest of which belongs to `level`."""
    digits = [(number >> (_RADIX_BITS * i)) & (_RADIX - 1) for i in range(_LEVELS - level)]
    shifts = shifts if isinstance(number, int) else jnp.asarray(shifts)
    return functools.reduce(operator.add, [shifts[level + i, digit] for i, digit in enumerate(digits)]) % columns


def _grouped(x: jax.Array, start: int) -> tuple[jax.Array, range]:
    """Blocks `[..., n, columns]` as `[..., groups, digits, columns]` and the digits there are, by lowest digit."""
    first, count = start % _RADIX, x.shape[-2]
    if first + count <= _RADIX:
        return x[..., None, :, :], range(first, first + count)
    around = [(0, 0)] * (x.ndim - 2) + [(first, -(first + count) % _RADIX), (0, 0)]
    x = jnp.pad(x, around)
    return x.reshape(*x.shape[:-2], -1, _RADIX, x.shape[-1]), range(_RADIX)


def _fold(x: jax.Array, words: jax.Array, start: int, shifts: Shifts) -> jax.Array:
    """The table of blocks `[n, columns]`, whose numbers count from `start`, with the hashed words of their indices."""
    rows, columns = shifts.shape[-1], x.shape[-1]
    values, digits = _grouped(x, start)
    words, _ = _grouped(words, start)
    values, words = _doubled(values), _doubled(words)

    def signed(row, index, shift):
        return _signed(_rotated(values[:, index], shift), _rotated(words[:, index], shift), row)

    sums = [sum(signed(i, k, shifts[0, c, i]) for k, c in enumerate(digits)) for i in range(rows)]
    level, start = 1, start // _RADIX
    while sums[0].shape[0] > 1:
        groups, digits = _grouped(jnp.stack(sums), start)
        groups = _doubled(groups)
        sums = [sum(_rotated(groups[i, :, k], shifts[level, c, i]) for k, c in enumerate(digits)) for i in range(rows)]
        level, start = level + 1, start // _RADIX
    table = jnp.stack(sums)[:, 0]
    return _rotate_rows(table, _rest(shifts, level, start, columns)) if start else table


def _spread(table: jax.Array, start: int, blocks: int, shifts: Shifts) -> jax.Array:
    """`[rows, blocks, columns]`: the bucket of each index, by undoing the rotations of `_fold` last to first."""
    rows, columns = table.shape
    spans = [(start, blocks)]
    while spans[-1][1] > 1:
        begin, end = spans[-1][0] // _RADIX, (sum(spans[-1]) - 1) // _RADIX
        spans.append((begin, end - begin + 1))
    top = len(spans) - 1
    if spans[top][0]:
        table = _rotate_rows(table, (columns - _rest(shifts, top, spans[top][0], columns)) % columns)
    x = table[:, None]
    for level in reversed(range(top)):
        begin, count = spans[level]
        first = begin % _RADIX
        digits = range(first, first + count) if x.shape[1] == 1 else range(_RADIX)
        doubled = _doubled(x)

        def back(row, digit, doubled=doubled, level=level):
            return _cut(doubled[row], shifts[level, digit, row])

        x = jnp.stack([jnp.stack([back(i, c) for c in digits], axis=1) for i in range(rows)])
        x = x.reshape(rows, -1, columns)
        x = x if len(digits) == count else x[:, first : first + count]
    return x


def _median(values: Sequence[jax.Array]) -> jax.Array:
    """Median of equally shaped arrays, element by element, by exchanges: XLA's sort of a short axis is slow on CPU."""
    values, count = list(values), len(values)
    for end in range(count - 1, (count - 1) // 2 - 1, -1):
        for i in range(end):
            pair = values[i], values[i + 1]
            values[i], values[i + 1] = jnp.minimum(*pair), jnp.maximum(*pair)
    return values[count // 2] if count % 2 else 0.5 * (values[count // 2 - 1] + values[count // 2])
