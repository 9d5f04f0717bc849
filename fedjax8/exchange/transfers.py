"""Transfers that share one link, at each moment max-min fair: no client gets less so that a faster one gets more.

    rate_i(t) = min(bandwidth_i, L(t))       of every transfer that is going on at time t
    L(t)      so that the rates add up to the capacity; infinite if all bandwidths together are within it

(Bertsekas and Gallager, Data Networks, section 6.5.2, for one link.) Rates change only where a transfer starts or
ends. From one such event to the next, L comes from water-filling: with the bandwidths of the m transfers in rising
order, the transfers before j run at their own bandwidth, where j is the first with

    b_1 + ... + b_(j-1) + (m - j + 1) b_j > capacity,        L = (capacity - b_1 - ... - b_(j-1)) / (m - j + 1)

Each event starts or ends at least one transfer by construction, so there are at most 2n of them whatever is rounded.
Time and remaining bytes are kept as the sum of two float32, since many short intervals make up a long transfer.
Additions have a fixed order.
"""

import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from fedjax8.types import Array
from fedjax8.xla_cpu import zero


class _Pair(NamedTuple):
    """A number, or an array of them, as the sum of two float32; `high` is the sum, rounded."""

    high: Array
    low: Array

    def plus(self, x: Array) -> "_Pair":
        """The sum with x (Dekker 1971, Knuth's two-sum)."""
        total = self.high + x
        part = total - self.high
        low = self.low + ((self.high - (total - part)) + (x - part))
        high = total + low
        return _Pair(high, low - (high - total))


class _Flows(NamedTuple):
    """Transfers at one moment, in rising order of bandwidth."""

    now: _Pair
    """float32: seconds."""
    waiting: Array
    """bool `[n]`: not started."""
    going: Array
    """bool `[n]`: started, not ended."""
    remaining: _Pair
    """float32 `[n]`: bytes."""
    end: Array
    """float32 `[n]`."""
    peak: Array
    """float32."""
    events: Array
    """int32."""


def transfers(
    start: Array, num_bytes: Array, bandwidth: Array, active: Array, capacity: float = math.inf
) -> tuple[Array, Array]:
    """When transfers end that start at given times and share a link.

    Args:
      start: float32 `[n]`, seconds.
      num_bytes: `[n]`, from 0 up. No bytes take no time.
      bandwidth: float32 `[n]`, bytes a second that a client reaches at most, above 0.
      active: bool `[n]`; the others transfer nothing and end at their start.
      capacity: bytes a second of all together, above 0. Where it is infinite, `end = start + num_bytes / bandwidth`.

    Returns:
      (end float32 `[n]`, peak float32: the largest sum of rates at a time). A transfer that ends at the moment at
      which another starts does not add to it, nor does one whose end and start are the same float32.

    Raises:
      ValueError: the capacity is not above 0.
    """
    if not capacity > 0:
        raise ValueError(f"capacity must be above 0; got {capacity}")
    start, num_bytes, bandwidth = (jnp.asarray(x, jnp.float32) for x in (start, num_bytes, bandwidth))
    used = active & (num_bytes > 0)
    if start.shape[0] == 0:
        return start, jnp.float32(0)
    if capacity == math.inf:
        end = jnp.where(used, start + num_bytes / bandwidth, start)
        return end, _largest_sum(start, end, jnp.where(used, bandwidth, 0))
    order = jnp.argsort(bandwidth)
    end, peak = _shared(start[order], num_bytes[order], bandwidth[order], used[order], capacity)
    return jnp.zeros_like(end).at[order].set(end), peak


def _largest_sum(start: Array, end: Array, rate: Array) -> Array:
    """float32: the largest sum of the rates of intervals `[start, end)` that overlap."""
    times = jnp.concatenate([end, start])
    is_start = jnp.concatenate([jnp.zeros_like(end), jnp.ones_like(start)])
    _, _, changes = lax.sort((times, is_start, jnp.concatenate([-rate, rate])), num_keys=2)
    return jnp.maximum(jnp.max(lax.associative_scan(jnp.add, changes)), 0)


def _shared(start: Array, num_bytes: Array, bandwidth: Array, used: Array, capacity: float) -> tuple[Array, Array]:
    """`transfers` over a finite capacity, of clients in rising order of bandwidth."""
    nothing = zero(start, num_bytes, bandwidth, used.astype(jnp.float32))
    nobody = jnp.zeros(start.shape, bool) | (nothing > 0)
    first = jnp.min(jnp.where(used, start, jnp.inf)) + nothing
    begun = _Flows(
        now=_Pair(jnp.where(jnp.isfinite(first), first, 0), nothing),
        waiting=used | nobody,
        going=nobody,
        remaining=_Pair(num_bytes + nothing, jnp.zeros_like(start) + nothing),
        end=start + nothing,
        peak=nothing,
        events=nothing.astype(jnp.int32),
    )
    limit = 2 * start.shape[0]
    unfinished = lambda flows: jnp.any(flows.waiting | flows.going) & (flows.events < limit)
    done = lax.while_loop(unfinished, functools.partial(_next, start, bandwidth, capacity), begun)
    return done.end, done.peak


def _next(start: Array, bandwidth: Array, capacity: float, flows: _Flows) -> _Flows:
    """The transfers after the next start or end of one, or of several at the same moment."""
    rate, total = _max_min(bandwidth, flows.going, capacity)
    needed = jnp.where(flows.going, flows.remaining.high / rate, jnp.inf)
    to_end = jnp.min(needed)
    next_start = jnp.min(jnp.where(flows.waiting, start, jnp.inf))
    to_start = jnp.maximum((next_start - flows.now.high) - flows.now.low, 0)
    starts = to_start <= to_end
    passed = jnp.minimum(to_start, to_end)

    later = flows.now.plus(passed)
    high = jnp.where(starts & (to_start > 0), next_start, later.high)
    now = _Pair(high, jnp.where(starts & (to_start > 0), 0, later.low))
    ended = flows.going & (needed <= passed)
    started = flows.waiting & starts & (start <= next_start)
    left = flows.remaining.plus(-jnp.where(flows.going, rate * passed, 0))
    return _Flows(
        now=now,
        waiting=flows.waiting & ~started,
        going=(flows.going & ~ended) | started,
        remaining=_Pair(jnp.maximum(left.high, 0), jnp.where(left.high > 0, left.low, 0)),
        end=jnp.where(ended, now.high, flows.end),
        peak=jnp.where(now.high > flows.now.high, jnp.maximum(flows.peak, total), flows.peak),
        events=flows.events + 1,
    )


def _max_min(bandwidth: Array, going: Array, capacity: float) -> tuple[Array, Array]:
    """(rate float32 `[n]` of the transfers that are going on, their sum), in rising order of bandwidth."""
    own = jnp.where(going, bandwidth, 0)
    sums = lax.associative_scan(jnp.add, jnp.stack([own, going.astype(jnp.float32)], 1))
    up_to, rank = sums[:, 0], sums[:, 1]
    below = jnp.concatenate([jnp.zeros_like(own[:1]), up_to[:-1]])
    others = rank[-1] - rank + 1  # a transfer that is going on, and those above it
    limited = going & (below + others * bandwidth > capacity)
    first = jnp.argmax(limited)
    level = (capacity - below[first]) / jnp.maximum(others[first], 1)
    # Rounded, the level may lie below a bandwidth that it lies above.
    level = jnp.maximum(level, jnp.max(jnp.where(jnp.arange(len(own)) < first, own, 0)))
    any_limited = jnp.any(limited)
    rate = jnp.where(any_limited, jnp.minimum(bandwidth, level), bandwidth)
    return rate, jnp.where(any_limited, capacity, jnp.minimum(up_to[-1], capacity))
