"""The largest of many scores, as ascending positions, without sorting.

The threshold is found bit by bit, from the highest: 31 counts over the scores, whatever the number that is kept. What
lies above it is written as a bit mask of 32-bit words, and the j-th set bit is found by a search among the words' sums
and then inside one word. On CPU this takes a tenth of a sort; `jax.lax.top_k` is as fast for one score in a hundred and
several times slower for one in ten.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_WORD = 32


@functools.partial(jax.jit, static_argnames=("count",), inline=True)
def largest(scores: jax.Array, count: int) -> jax.Array:
    """Positions of the `count` largest scores, ascending; among equal ones the first are taken.

    Args:
      scores: int32 [n], none negative. The bit patterns of float32 magnitudes are in the order of their values.
      count: 1 to n, static.

    Returns:
      int32 [count].

    Example:
      >>> largest(jnp.array([3, 9, 9, 1, 9], jnp.int32), 2)
      Array([1, 2], dtype=int32)
    """
    if not 1 <= count <= scores.size:
        raise ValueError(f"count={count} of {scores.size} scores is out of range: 1 to {scores.size} can be taken")
    if count == scores.size:
        return jnp.arange(count, dtype=jnp.int32)

    def bit(step, low):
        higher = low | (jnp.int32(1) << (30 - step))
        return jnp.where(jnp.sum(scores >= higher, dtype=jnp.int32) >= count, higher, low)

    threshold = jax.lax.fori_loop(0, 31, bit, jnp.int32(0))  # the smallest score that is taken
    above = jnp.sum(scores > threshold, dtype=jnp.int32)
    last_tie = _nth_true(scores == threshold, (count - above)[None])[0]
    taken = (scores > threshold) | ((scores == threshold) & (jnp.arange(scores.size) <= last_tie))
    return _nth_true(taken, jnp.arange(1, count + 1, dtype=jnp.int32))


def _nth_true(mask: jax.Array, nth: jax.Array) -> jax.Array:
    """Positions of the nth (from 1) true elements."""
    mask = jnp.pad(mask, (0, -mask.size % _WORD)).reshape(-1, _WORD).astype(jnp.uint32)
    words = jnp.sum(mask << np.arange(_WORD, dtype=np.uint32), axis=1, dtype=jnp.uint32)
    sums = jnp.cumsum(jax.lax.population_count(words).astype(jnp.int32))
    at = jnp.searchsorted(sums, nth, method="scan_unrolled")
    before = jnp.where(at > 0, sums[at - 1], 0)
    word, rank, place = words[at], (nth - before).astype(jnp.uint32), _WORD * at
    for width in (16, 8, 4, 2, 1):
        low = jax.lax.population_count(word & np.uint32((1 << width) - 1))
        beyond = rank > low
        rank = jnp.where(beyond, rank - low, rank)
        word = jnp.where(beyond, word >> np.uint32(width), word)
        place = place + jnp.where(beyond, width, 0)
    return place.astype(jnp.int32)
