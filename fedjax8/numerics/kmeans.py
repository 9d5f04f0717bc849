"""k-means of scalars, deterministic and exact to float32: the codebook that clusters a model's weights.

    boundaries m_j = (z_j + z_(j+1)) / 2;   z_j = mean of the x in (m_(j-1), m_j];   repeated until z stands still

Lloyd's algorithm in one dimension (FedCode, arXiv 2311.09270, clusters with k-means++ and ten restarts in float64; the
following is this project's choice). It starts from the best clusters that can be made of some hundred bins, found by
dynamic programming (Wang and Song, "Ckmeans.1d.dp", The R Journal 3, 2011, do that with the values themselves). Bins
are quantiles of the cube root of the density, the spread of the best quantizer's values when there are many (Panter and
Dite, 1951). Lloyd's iterations alone do not leave the cells they start in: from such quantiles they end at
almost twice the least error for 64 clusters of values with heavy tails.

The values are sorted once; then a cluster is a range of them and its sum the difference of two prefix sums, so that an
iteration costs C binary searches instead of N * C distances. Prefix sums are kept in pairs of float32 (48 bits), since
a plain float32 sum loses the mean of a million values. Values are first divided by a power of two, so that no sum
overflows.

Every host computes the same codebook from the same values in whatever order.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

ITERATIONS = 300
SHIFT = np.float32(1e-7)
"""Centroids stand still when none moves by more than this fraction of the range of the values."""
_BINS, _FEWEST, _MOST = 8, 64, 512
"""Bins of values that clusters are made of: so many times C, within these limits and at least 2 C."""
_REFINEMENTS = 6
"""Times that bins are refined by the contents of the last ones."""
_MAGNITUDE = np.int32(0x7FFFFFFF)


@functools.partial(jax.jit, static_argnames=("clusters",), inline=True)
def kmeans(x: jax.Array, clusters: int) -> jax.Array:
    """Codebook of `clusters` centroids, sorted, of the scalars `x`.

    A cluster without values keeps its centroid. Where there are no more distinct values than clusters, they are the
    codebook exactly, padded by the largest.

    Args:
      x: float32 of any shape, at least one element, finite.
      clusters: C, at least 1, static.

    Returns:
      float32 [C].

    Example:
      >>> kmeans(jnp.array([0.0, 1.0, 10.0, 11.0]), 2)
      Array([ 0.5, 10.5], dtype=float32)
    """
    if clusters < 1 or x.size < 1:
        raise ValueError(f"k-means needs clusters and values; got clusters={clusters} of {x.size} values")
    ordered = _sort(x.reshape(-1))
    rank = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), (ordered[1:] != ordered[:-1]).astype(jnp.int32)]))
    distinct = rank[-1] + 1
    unit = _power_of_two(jnp.maximum(-ordered[0], ordered[-1]))
    given, ordered = ordered, ordered / unit
    high, low = _prefix_sums(ordered)
    tolerance = SHIFT * (ordered[-1] - ordered[0])

    def means_between(ends, otherwise):
        count = ends[1:] - ends[:-1]
        sums, rest = _two_sum(high[ends[1:]], -high[ends[:-1]])
        sums = sums + (rest + (low[ends[1:]] - low[ends[:-1]]))
        return jnp.where(count > 0, sums / jnp.maximum(count, 1).astype(jnp.float32), otherwise)

    edges = _edges(ordered, rank, distinct, min(max(_BINS * clusters, _FEWEST), max(_MOST, 2 * clusters), x.size))
    value = means_between(edges, ordered[jnp.minimum(edges[:-1], x.size - 1)])
    parts = edges[_best_of_bins(jnp.diff(edges).astype(jnp.float32), value, clusters)]
    start = means_between(parts, ordered[jnp.minimum(parts[:-1], x.size - 1)])

    def step(carry):
        centroids, _, iteration = carry
        inner = jnp.searchsorted(ordered, midpoints(centroids), side="right")
        ends = jnp.concatenate([jnp.zeros(1, jnp.int32), inner.astype(jnp.int32), jnp.full(1, x.size, jnp.int32)])
        means = means_between(ends, centroids)
        # Rounding may take a mean past the next one by a unit in the last place where clusters are that narrow.
        means = lax.cummax(means)
        return means, jnp.max(jnp.abs(means - centroids)), iteration + 1

    def goes_on(carry):
        _, shift, iteration = carry
        return (distinct > clusters) & (shift > tolerance) & (iteration < ITERATIONS)

    centroids, *_ = lax.while_loop(goes_on, step, (lax.cummax(start), jnp.float32(jnp.inf), jnp.int32(0)))
    each = jnp.searchsorted(rank, jnp.minimum(jnp.arange(clusters), distinct - 1))
    return jnp.where(distinct > clusters, centroids * unit, given[each])


def midpoints(codebook: jax.Array) -> jax.Array:
    """Of each pair of neighbors in a sorted codebook, the largest float32 that is no nearer to the upper one.

    float32 [C] to float32 [C - 1].
    """
    below, above = 0.5 * codebook[:-1], 0.5 * codebook[1:]
    middle, rest = _two_sum(below, above)
    return jnp.where(rest < 0, jnp.nextafter(middle, jnp.float32(-jnp.inf)), middle)


def assign(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """Index of the nearest value of a sorted codebook for each x; of two as near, the lower one.

    float32 of any shape and float32 [C] to int32 of the shape of x.

    Example:
      >>> assign(jnp.array([-9.0, 0.5, 0.6]), jnp.array([0.0, 1.0]))
      Array([0, 0, 1], dtype=int32)
    """
    return jnp.searchsorted(midpoints(codebook), x, method="scan_unrolled").astype(jnp.int32)


def snap(x: jax.Array, codebook: jax.Array) -> jax.Array:
    """The nearest value of a sorted codebook for each x; of two as near, the lower one.

    Idempotent and monotone; values outside the codebook's range go to its first or last value.

    Example:
      >>> snap(jnp.array([-9.0, 0.5, 0.6]), jnp.array([0.0, 1.0]))
      Array([0., 0., 1.], dtype=float32)
    """
    return codebook[assign(x, codebook)]


def _sort(x: jax.Array) -> jax.Array:
    """Ascending. As integers in the same order, which XLA's sort on CPU takes four times faster than floats."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    bits = jnp.sort(jnp.where(bits < 0, bits ^ _MAGNITUDE, bits))
    return lax.bitcast_convert_type(jnp.where(bits < 0, bits ^ _MAGNITUDE, bits), jnp.float32)


def _power_of_two(x: jax.Array) -> jax.Array:
    """The power of two at or below x > 0; 1 for zero and for numbers that processors may take for zero."""
    bits = lax.bitcast_convert_type(x, jnp.int32) & np.int32(0x7F800000)
    return jnp.where(bits > 0, lax.bitcast_convert_type(bits, jnp.float32), 1.0)


def _edges(ordered: jax.Array, rank: jax.Array, distinct: jax.Array, bins: int) -> jax.Array:
    """int32 [bins + 1]: positions from 0 to N that part the values into bins, as narrow as the best codebook asks for.

    A bin of m values and width w gets a share of cbrt(m w**2) of the new bins, again and again: their density tends to
    the cube root of the values', in the tails too. Equal values share a bin; where no more values differ than there are
    bins, each has its own.
    """
    j = jnp.arange(bins + 1, dtype=jnp.int32)
    whole, rest = distinct // bins, distinct % bins  # so that no product leaves 32 bits
    equal = j * whole + j * rest // bins

    def position(ranks):
        return jnp.searchsorted(rank, ranks).astype(jnp.int32)

    def finer(_, ranks):
        at = position(ranks)
        width = jnp.diff(ordered[jnp.minimum(at, ordered.size - 1)])
        weights = jnp.cbrt(jnp.diff(at).astype(jnp.float32) * jnp.square(width))
        for _ in range(3):  # few values far apart need a bin each and, so that none is missed, no more than two
            weights = jnp.minimum(weights, jnp.diff(ranks).astype(jnp.float32) * (jnp.sum(weights) * (2 / bins)))
        reached = jnp.cumsum(weights)
        targets = j.astype(jnp.float32) * (reached[-1] / bins)
        new = jnp.interp(targets, jnp.concatenate([jnp.zeros(1), reached]), ranks.astype(jnp.float32))
        new = jnp.round(new).astype(jnp.int32)
        new = lax.cummax(new.at[0].set(0) - j) + j  # no two at one value
        return jnp.minimum(new, distinct - bins + j).at[-1].set(distinct)

    ranks = lax.fori_loop(0, _REFINEMENTS, finer, equal)
    return position(jnp.where(distinct > bins, ranks, equal))


def _best_of_bins(counts: jax.Array, means: jax.Array, clusters: int) -> jax.Array:
    """int32 [C + 1]: which bins part the clusters whose squared error is least, of all ways to join neighbors.

    Dynamic programming: error(k, j) = min over i of error(k - 1, i) + cost(i, j), the cost of bins i ... j as one.
    """
    bins = counts.size

    def join(carry, bin):
        count, mean, error = carry  # of the bins i ... j, for each i
        index, more, value = bin
        total = jnp.maximum(count + more, np.float32(1e-30))
        there = jnp.arange(bins) <= index
        apart = value - mean
        error = jnp.where(there, error + count * more / total * jnp.square(apart), jnp.inf)
        carry = jnp.where(there, count + more, 0.0), jnp.where(there, mean + more / total * apart, 0.0), error
        return (*carry[:2], jnp.where(there, error, 0.0)), error

    zeros = jnp.zeros(bins)
    _, costs = lax.scan(join, (zeros, zeros, zeros), (jnp.arange(bins), counts, means))  # [j, i]

    def add(errors, _):
        before = jnp.concatenate([jnp.full(1, jnp.inf), errors[:-1]])
        return jnp.min(before + costs, axis=1), before

    _, tables = lax.scan(add, costs[:, 0], length=clusters - 1)

    def back(end, errors):
        first = jnp.argmin(errors + costs[end - 1]).astype(jnp.int32)
        return first, first

    _, firsts = lax.scan(back, jnp.int32(bins), tables, reverse=True)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), firsts, jnp.full(1, bins, jnp.int32)])


def _two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(a + b rounded, the rounding error), exactly (Knuth)."""
    total = a + b
    from_b = total - a
    return total, (a - (total - from_b)) + (b - from_b)


def _add_pair(high: jax.Array, low: jax.Array, x: jax.Array, x_low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(high + low) + (x + x_low) as a pair."""
    total, rest = _two_sum(high, x)
    return _two_sum(total, rest + (low + x_low))


def _prefix_sums(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of the first 0 ... N values as pairs of float32 [N + 1], whose sum is good to about 2**-45.

    Rows of about sqrt(N) values are summed side by side, then their totals one after the other.
    """
    width = max(1, int(np.sqrt(x.size)))
    rows = jnp.pad(x, (0, -x.size % width)).reshape(-1, width)

    def add(pair, value):
        pair = _add_pair(*pair, *value)
        return pair, pair

    zero = jnp.zeros_like(rows[:, 0])
    totals, inside = lax.scan(add, (zero, zero), (rows.T, jnp.zeros_like(rows.T)))
    _, ends = lax.scan(add, (jnp.float32(0), jnp.float32(0)), totals)
    before = [jnp.concatenate([jnp.zeros(1), end[:-1]]) for end in ends]
    pairs = _add_pair(inside[0].T, inside[1].T, before[0][:, None], before[1][:, None])
    sums, rests = (jnp.concatenate([jnp.zeros(1), part.reshape(-1)[: x.size]]) for part in pairs)
    return sums, rests
