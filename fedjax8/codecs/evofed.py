"""EvoFed: distances of a shared random population's members to the update, instead of the update.

    member j = sigma z_j;   f_j = -||sigma z_j - x||;   x^ = rate / (P sigma) sum_j shaped(f)_j z_j

Rahimi et al. (arXiv 2311.07485; the formulas, antithetic noise z_(j + P/2) = -z_j, shapings, parts and default settings
are those of the authors' code). Both sides grow the same population, so that P numbers per part travel, whatever the
size of the model. Of the authors' optimizer steps there is the plain one; weight decay, which needs the model itself
and not its update, is left out.

With squared distances and no shaping, the mean of the decoded update over populations is 2 rate x, for any sigma: at
rate 1/2 it is unbiased, with noise of 2 d / P times the update's own squared norm. Shaped fitness keeps the direction
and forgets the length, which `rate` then sets.

A constant added to every f_j changes nothing; the mean over members is taken off, since the distances of a large model
are large numbers that differ little. Without shaping the mean of each pair is.

Message layout: float32 `[K, P]`; with `population="own"` also a seed of 8 bytes.
"""

import functools

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fedjax8 import trees
from fedjax8.codecs import _flat
from fedjax8.codecs._leaves import divided, largest_magnitude, unit_of, within
from fedjax8.errors import UserError
from fedjax8.keys import as_key, random_key
from fedjax8.types import Array, Codec, Key, PyTree

FITNESSES = ("distance", "squared")
SHAPINGS = ("zscore", "ranks", "none")
POPULATIONS = ("shared", "own")
_DEVIATION_FLOOR = 1e-5
"""Added to the deviation of a z-score (authors' code)."""


@struct.dataclass
class Fitness:
    """A message."""

    values: Array | None
    """float32 `[K, P]`: shaped fitness of the members, first those of z, then those of -z; None of an empty tree."""
    seed: Array | None
    """uint32 `[2]`: seed of the population; None where both sides count messages instead."""
    others: tuple[PyTree, ...]
    """Leaves that pass through."""
    layout: _flat.Layout = struct.field(pytree_node=False)


def evofed(
    members: int = 128,
    sigma: float = 0.35,
    *,
    parts: int = 1,
    fitness: str = "distance",
    shaping: str = "zscore",
    rate: float = 0.0427,
    population: str = "shared",
    seed: int = 0,
) -> Codec:
    """Codec that sends fitness values, for updates.

    Args:
      members: P, even; half of them are the negatives of the others.
      sigma: standard deviation of the members.
      parts: K equal pieces of the flattened tree, zero-padded, with a population each.
      fitness: `distance` or `squared`.
      shaping: `zscore`, `ranks` (centered, from -1/2 to 1/2) or `none`.
      rate: step of the receiver.
      population: `shared` grows the n-th population of every sender from (`seed`, n), so that nothing but fitness
        travels; `own` draws a seed for every message and sends it, so that the noise of several senders averages out.
      seed: of the shared populations.

    Guarantees: fixed size, independent of the model's; unbiased with own populations, squared distances, no shaping and
    rate 1/2, as long as no fitness exceeds float32. State: int32 number of messages, for shared populations.
    Measures `quantization_error`.

    Raises:
      UserError: when the run is set up, if the message is no smaller than the tree.
    """
    if members < 2 or members % 2:
        raise ValueError(f"members must be even and at least 2; got {members!r}")
    if parts < 1:
        raise ValueError(f"parts must be at least 1; got {parts!r}")
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0; got {sigma!r}")
    for name, given, allowed in (
        ("fitness", fitness, FITNESSES),
        ("shaping", shaping, SHAPINGS),
        ("population", population, POPULATIONS),
    ):
        if given not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {given!r}")
    pairs, shared = members // 2, population == "shared"

    def grow(state, own: Array | None) -> Key:
        return jax.random.fold_in(random_key(seed), state) if own is None else as_key(own)

    def noise(key, pair, size) -> Array:
        return jax.random.normal(jax.random.fold_in(key, pair), (parts, -(-size // parts)))

    @functools.partial(jax.jit, inline=True)
    def encode(key, state, tree):
        vectors, others, layout = _flat.flatten(tree)
        own = None if shared else jax.random.bits(key, (2,), jnp.uint32)
        new = state + 1 if shared else state
        if not vectors:
            return Fitness(None, None, others, layout), new
        (x,) = vectors
        size = jnp.maximum(largest_magnitude(x), sigma)  # so that no square leaves float32
        scaled = jnp.pad(divided(x, size), (0, -x.size % parts)).reshape(parts, -1)
        population_key = grow(state, own)

        def measure(carry, pair):
            z = noise(population_key, pair, x.size)
            return carry, (jnp.sum(z * scaled, axis=1), jnp.sum(z * z, axis=1))

        _, (along, lengths) = lax.scan(measure, (), jnp.arange(pairs))
        spread = sigma / size
        ends = jnp.sum(scaled * scaled, axis=1)
        middle = spread**2 * lengths + ends  # mean of the two squared distances of a pair
        half = 2 * spread * along  # half their difference
        if fitness == "squared":  # over size, or ||x||^2 might leave float32
            unit, common, contrast = size, -sigma * spread * lengths, 2 * sigma * along
        else:  # less ||x||, and by quotients, which keep the digits of differences
            near, far, own_length = (jnp.sqrt(jnp.maximum(y, 0.0)) for y in (middle - half, middle + half, ends))
            excess = sigma * spread * lengths
            shift = 2 * sigma * along
            common = -0.5 * (divided(excess - shift, near + own_length) + divided(excess + shift, far + own_length))
            unit, contrast = jnp.float32(1.0), divided(shift, near + far)
        # Without shaping the common part of a pair has no effect, and would cost the small difference its digits.
        common = jnp.zeros_like(common) if shaping == "none" else common - jnp.mean(common, axis=0)
        values = jnp.concatenate([common + contrast, common - contrast]).T
        return Fitness(_shape(values, shaping, unit), own, others, layout), new

    @functools.partial(jax.jit, inline=True)
    def decode(state, message):
        if message.values is None:
            return _flat.unflatten((), message.others, message.layout)
        (size,) = _flat.group_sizes(message.layout)
        population_key = grow(state, message.seed)
        unit = unit_of(largest_magnitude(message.values))
        values = message.values * (1 / unit)
        contrasts = values[:, :pairs] - values[:, pairs:]

        def add(total, pair):
            return total + contrasts[:, pair, None] * noise(population_key, pair, size), ()

        start = jnp.zeros((parts, -(-size // parts)))
        total, _ = lax.scan(add, start, jnp.arange(pairs))
        x = within((rate / (members * sigma)) * total.reshape(-1)[:size] * unit)
        return _flat.unflatten((x,), message.others, message.layout)

    def init(tree):
        count = sum(x.size for x in jax.tree.leaves(tree) if trees.is_float32(x))
        if 0 < count <= parts * members + (0 if shared else 2):
            raise UserError(
                f"evofed: fitness of members={members} for parts={parts} is no smaller than the {count} values of "
                "the tree; give fewer members"
            )
        return jnp.int32(0) if shared else ()

    plain = fitness == "squared" and shaping == "none" and rate == 0.5
    return Codec(init, encode, decode, plain and not shared, None, _flat.squared_error, aligned=True)


def _shape(values: Array, shaping: str, unit: Array) -> Array:
    """Shaped fitness `[K, P]`, each part by itself, of `values * unit`."""
    if shaping == "ranks":
        ranks = jnp.argsort(jnp.argsort(values, axis=1), axis=1).astype(jnp.float32)
        return ranks / (values.shape[1] - 1) - 0.5
    if shaping == "zscore":
        values = values - jnp.mean(values, axis=1, keepdims=True)
        return values / (jnp.std(values, axis=1, keepdims=True) + _DEVIATION_FLOOR / unit)
    return within(values * unit)


EXAMPLES = (
    {"members": 8},
    {"members": 8, "parts": 3, "shaping": "ranks"},
    {"members": 8, "fitness": "squared", "shaping": "none", "rate": 0.5, "population": "own"},
)
