"""A client's batches, cut on the device: shuffled epochs of rows that are gathered, masked and never copied per client.

This is step work and therefore JAX, unlike the rest of `data/`. All columns lie on the device once, as they came
(images as uint8). A client is a range of `Pool.order`; a batch is a gather by index inside the training step. Clients
of different size run the same program: a client of n examples takes ceil(n / B) steps an epoch, and the last batch is
masked.

Shuffling needs no table: where a row lies in an epoch is computed for the rows of one batch at a time, by the
swap-or-not shuffle (Hoang, Morris, Rogaway 2012), a permutation of 0 .. n - 1 for any n. In round r, with a random
partner x' = K_r - x mod n, the pair {x, x'} is swapped or not by one hashed bit of max(x, x'). Each round leaves a row
where it is with probability 1/2 and else puts it anywhere, so ROUNDS of them leave a bias of 2**-ROUNDS. A client pays
for its own batches and nothing for the largest client's.

Poisson sampling, which private training is accounted by, takes every row with probability q = min(1, B / n), on its
own. With a new order at every step the first X rows are such a sample if X is Binomial(n, q). A batch then has
`poisson_lanes(B)` lanes, of which X are used; a sample that has more rows than lanes is not drawn, which changes its
distribution by OVERFLOW at most.
"""

import itertools
import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.types import Array, Batch, BatchPlan, ClientRows, Key

ROUNDS = 24
"""Rounds of the shuffle: a bias below what float32 probabilities could express."""

SAMPLING = ("shuffled", "poisson")
"""Ways to draw batches: every row once an epoch, or every row independently at every step."""
OVERFLOW = 1e-12
"""Bound on the probability that a Poisson sample has more rows than a batch has lanes."""


Numbers = TypeVar("Numbers", Array, np.ndarray)


def batch_plan(batch_size: int, *, epochs: int | None = None, steps: int | None = None) -> BatchPlan:
    """A plan of `epochs`, or of `steps` on every client, epochs begun anew as often as needed.

    Raises ValueError unless exactly one of the two is given and all are at least 1.
    """
    length = epochs if steps is None else steps
    if (epochs is None) == (steps is None) or length is None or length < 1 or batch_size < 1:
        raise ValueError(
            f"give batch_size and one of epochs, steps, each at least 1; got batch_size={batch_size}, "
            f"epochs={epochs}, steps={steps}"
        )
    return BatchPlan(batch_size, epochs, steps)


def steps_per_epoch(plan: BatchPlan, size: Numbers) -> Numbers:
    """ceil(size / batch_size). Also on NumPy arrays."""
    return (size + plan.batch_size - 1) // plan.batch_size


def num_steps(plan: BatchPlan, size: Numbers) -> Numbers:
    """int32 number of local steps of a client of `size` examples; 0 for an empty client. Also on NumPy arrays."""
    if plan.epochs is not None:
        return steps_per_epoch(plan, size) * plan.epochs
    assert plan.steps is not None  # `batch_plan` saw to it
    return plan.steps * (size > 0)


def _mix(x: Array) -> Array:
    """A 32-bit avalanche: every bit of the result depends on every bit of x (murmur3's finalizer)."""
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def shuffled(key: Key, places: Array, size: Array) -> Array:
    """Where `places` (int32, values in 0 .. size - 1) lie after a random permutation of 0 .. size - 1 drawn from `key`.

    All calls with one key and size belong to one permutation: different places give different results.
    """
    words = jax.random.bits(key, (2,), jnp.uint32)
    modulus = jnp.maximum(size, 1).astype(jnp.uint32)

    def swap(r, x):
        partner_key = _mix(words[0] + np.uint32(0x9E3779B9) * (r + 1)) % modulus
        partner = (partner_key + modulus - x) % modulus
        bit = _mix(jnp.maximum(x, partner) ^ _mix(words[1] + r)) & 1
        return jnp.where(bit == 1, partner, x)

    # One kernel on accelerators; on CPU a loop is as fast and compiles five times faster.
    unroll = jax.default_backend() != "cpu"
    x = jax.lax.fori_loop(
        0, ROUNDS, lambda r, x: swap(jnp.asarray(r, jnp.uint32), x), places.astype(jnp.uint32), unroll=unroll
    )
    return x.astype(jnp.int32)


def poisson_lanes(batch_size: int) -> int:
    """Fewest lanes a with P(X > a) <= OVERFLOW for every X ~ Binomial(n, batch_size / n), by Chernoff's bound:

    P(X >= t) <= exp(-B) (e B / t)^t for t > B, for all n.
    """
    log_chance = lambda t: t - batch_size - t * math.log(t / batch_size)
    return next(t - 1 for t in itertools.count(batch_size + 1) if log_chance(t) <= math.log(OVERFLOW))


def binomial_reached(batch_size: int, size: Array) -> Array:
    """float32 `[poisson_lanes + 1]`: P(X <= k) of X ~ Binomial(size, batch_size / size), given X <= `poisson_lanes`.

    For sizes above the batch size. Off by 5e-7 at most, since it is float32.
    """
    number = jnp.arange(poisson_lanes(batch_size), dtype=jnp.float32)
    n = jnp.maximum(size, 1).astype(jnp.float32)
    odds = batch_size / jnp.maximum(n - batch_size, 1.0)
    # log p(k + 1) - log p(k), with odds q / (1 - q)
    steps = jnp.log(jnp.maximum(n - number, 0.0) / (number + 1.0) * odds)
    # Summed from the mean outward, so that likely values are exact.
    below = -jnp.cumsum(steps[:batch_size][::-1])[::-1]
    logs = jnp.concatenate([below, jnp.zeros(1), jnp.cumsum(steps[batch_size:])])
    reached = jnp.cumsum(jnp.exp(logs))
    return reached / reached[-1]


def poisson_count(key: Key, batch_size: int, size: Array) -> Array:
    """int32 X ~ Binomial(size, min(1, batch_size / size)), given X <= `poisson_lanes(batch_size)`; by inversion."""
    drawn = jnp.sum(jax.random.uniform(key) >= binomial_reached(batch_size, size)[:-1], dtype=jnp.int32)
    return jnp.where(size <= batch_size, size, drawn)


def _poisson_places(plan: BatchPlan, key: Key, step: Array | int, size: Array) -> tuple[Array, Array]:
    """Places in 0 .. size - 1 `[lanes]`, and how many of them, the first, are in the sample."""
    order_key, count_key = jax.random.split(jax.random.fold_in(key, step))
    count = poisson_count(count_key, plan.batch_size, size)
    lane = jnp.arange(poisson_lanes(plan.batch_size))
    return shuffled(order_key, lane % jnp.maximum(count, 1), size), count


def take_batch(plan: BatchPlan, rows: ClientRows, key: Key | None, step: Array | int) -> Batch:
    """Batch number `step` of a client: columns `[B, ...]` and `mask` float32 `[B]`.

    The order is drawn anew from `key` for every epoch, or is that of the data where `key` is None. A batch that is not
    full repeats its own rows under a mask of 0, so that statistics over a batch see no foreign rows. Poisson batches
    have `poisson_lanes(B)` lanes; without a key they are cut as the others. Rows that `rows.change` gives a `mask` of 0
    count for nothing either.
    """
    if plan.sampling == "poisson" and key is not None:
        place, count = _poisson_places(plan, key, step, rows.size)
        return _masked(rows, _rows_at(rows, place), jnp.arange(len(place)) < count)
    per_epoch = jnp.maximum(steps_per_epoch(plan, rows.size), 1)
    first = (step % per_epoch) * plan.batch_size
    lane, count = jnp.arange(plan.batch_size), jnp.clip(rows.size - first, 1, plan.batch_size)
    place = first + lane % count
    if key is not None:
        place = shuffled(jax.random.fold_in(key, step // per_epoch), place, rows.size)
    return _masked(rows, _rows_at(rows, place), first + lane < rows.size)


def _masked(rows: ClientRows, batch: Batch, there: Array) -> Batch:
    """The batch with a mask of the rows that are there, and that `rows.change` admits."""
    mask = there.astype(jnp.float32)
    return batch | {"mask": mask * batch["mask"] if rows.change and "mask" in batch else mask}


def _rows_at(rows: ClientRows, place: Array) -> Batch:
    """Columns `[len(place), ...]` of a client's rows, counted from its first."""
    index = rows.start + place
    if rows.pool.order is not None:
        index = rows.pool.order[index]
    batch = {name: column[index] for name, column in rows.pool.columns.items()}
    return rows.change(batch) if rows.change else batch
