"""Euclidean norms of trees that are upper bounds for any float32 values, and clipping by them.

    clip(x; C) = x min(1, C / |x|),   |x| the Euclidean norm over all leaves together

A clipped tree is at most C long in exact arithmetic, whatever float32 values it was made of:

- Squares are summed at three scales (1, 2^-80, 2^80), so that nothing overflows or underflows that would matter; a norm
  is a float32 number times a power of two, and may exceed the largest float32.
- Sums are taken in levels of `FAN` terms. A sum of k float32 terms that are not negative is off by at most (k - 1) u of
  itself in any order, u = 2^-24 (Higham 2002, Accuracy and Stability of Numerical Algorithms, section 4.2), so a level
  adds FAN u at most. Every norm is lengthened by the bound on its sum's error: 5e-6 of it for 10^5 values, 6e-6 for
  10^9.

A tree with a value that is not finite has an infinite norm and is clipped to zeros. All other trees keep their
direction, those whose norm is above the largest float32 too.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax8.types import Array, PyTree

FAN = 16
"""Terms that one level of a sum adds up."""
UNIT = 2.0**-24
"""u: largest relative error of one float32 operation."""
BOUNDS = (1e-30, 1e30)
"""Least and largest bound of clipping: beyond them clipped values, or their noise, are no normal float32."""
_SCALES = (1.0, 2.0**-80, 2.0**80)
_SMALL = 2.0**-40
"""Sums of squares from which on underflow at scale 1 does not matter."""
_OWN_ROUNDINGS = 12
"""More than the roundings of roots, products and quotients between a sum of squares and a clipped value."""
_LEAST = -252
"""Exponent below which a factor is taken for 0: no float32 times it is above 2^-124."""
_NOTHING = -(1 << 12)
"""Exponent of zero where exponents are compared."""


class Norm(NamedTuple):
    """value 2^exponent: never below the true norm, and above it by a few millionths of it."""

    value: Array
    """float32: 0, in [1, 2), or infinite where something is not finite."""
    exponent: Array
    """int32."""

    def number(self) -> Array:
        """float32; infinite where there is no such float32."""
        return scaled(self.value, Factor(jnp.float32(1), self.exponent))


class Factor(NamedTuple):
    """mantissa 2^exponent."""

    mantissa: Array
    """float32."""
    exponent: Array
    """int32."""


def check_bound(bound: float, noised: bool) -> None:
    """ValueError unless a bound is in BOUNDS, or infinite where no noise is added."""
    if not (BOUNDS[0] <= bound <= BOUNDS[1] or (bound == math.inf and not noised)):
        without = "" if noised else ", or infinite"
        raise ValueError(f"clip must be from {BOUNDS[0]} to {BOUNDS[1]}{without}; got {bound}")


def norm_of(tree: PyTree) -> Norm:
    """The norm over all leaves together."""
    return joined([_of_leaf(x) for x in jax.tree.leaves(tree)])


def product(a: Norm, b: Norm) -> Norm:
    """The norm of an outer product of factors with these norms."""
    return _normal(a.value * b.value * (1 + 2 * UNIT), a.exponent + b.exponent)


def joined(norms: Sequence[Norm]) -> Norm:
    """The norm of all parts together, from the norms of each."""
    if not norms:
        return Norm(jnp.float32(0), jnp.int32(0))
    values, exponents = (jnp.stack(column) for column in zip(*norms, strict=True))
    largest = jnp.max(jnp.where(values > 0, exponents, _NOTHING))
    largest = jnp.where(largest == _NOTHING, 0, largest)
    relative = _of_leaf(values * power_of_two(exponents - largest))
    return Norm(relative.value, relative.exponent + largest)


def exceeds(norm: Norm, bound: Array | float) -> Array:
    """bool: whether `clip` shortens; true where the norm is infinite."""
    return _factor_and_long(norm, bound)[1]


def factor_of(norm: Norm, bound: Array | float) -> Factor:
    """The factor of `clip`: 1 where the norm is within the bound, 0 where it is infinite."""
    return _factor_and_long(norm, bound)[0]


def scaled(x: Array, factor: Factor) -> Array:
    """x mantissa 2^exponent in x's dtype, without overflow or underflow on the way to a value that has neither."""
    first = factor.exponent // 2
    x = x * power_of_two(first).astype(x.dtype) * power_of_two(factor.exponent - first).astype(x.dtype)
    return x * jnp.where(factor.exponent < _LEAST, 0.0, factor.mantissa).astype(x.dtype)


def clip(tree: PyTree, bound: Array | float, norm: Norm | None = None) -> PyTree:
    """`tree` of float32 leaves, at most `bound` long; zeros where its norm is infinite.

    `norm` is worked out if it is not given.
    """
    norm = norm_of(tree) if norm is None else norm
    factor = factor_of(norm, bound)
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(norm.value), scaled(x, factor), 0.0), tree)


def power_of_two(exponent: Array) -> Array:
    """float32 2^exponent, the exponent brought to -126 ... 126."""
    return lax.bitcast_convert_type((jnp.clip(exponent, -126, 126) + 127) << 23, jnp.float32)


def _factor_and_long(norm: Norm, bound: Array | float) -> tuple[Factor, Array]:
    most = jnp.asarray(bound, jnp.float32)
    of_bound = _normal(most, jnp.int32(0))
    mantissa, exponent = of_bound.value / norm.value, of_bound.exponent - norm.exponent  # above 1/2 and below 2
    long = (mantissa * power_of_two(jnp.clip(exponent, -2, 2)) < 1) & (norm.value > 0) & jnp.isfinite(most)
    usable = jnp.isfinite(norm.value)
    clipped = Factor(jnp.where(usable, mantissa, 0.0), jnp.where(usable, exponent, 0))
    long |= ~usable
    return Factor(jnp.where(long, clipped.mantissa, 1.0), jnp.where(long, clipped.exponent, 0)), long


def _normal(value: Array, exponent: Array) -> Norm:
    """The same number, its value in [1, 2); 0 for values that are no normal float32."""
    own = (lax.bitcast_convert_type(value, jnp.int32) >> 23) - 127
    plain = jnp.isfinite(value) & (value >= 2.0**-126)
    own = jnp.where(plain, jnp.clip(own, -126, 126), 0)
    return Norm(
        jnp.where(plain, value * power_of_two(-own), jnp.where(jnp.isfinite(value), 0.0, jnp.inf)), exponent + own
    )


def _of_leaf(x: Array) -> Norm:
    """The norm of one array."""
    parts, levels = _sums_of_squares(jnp.asarray(x, jnp.float32).reshape(-1))
    plain, big, small = parts
    is_plain = jnp.isfinite(plain) & (plain >= _SMALL)
    chosen = jnp.where(is_plain, plain, jnp.where(jnp.isfinite(plain), small, big))
    exponent = jnp.where(is_plain, 0, jnp.where(jnp.isfinite(plain), -80, 80))
    root = jnp.sqrt(jnp.where(jnp.isfinite(big), chosen, jnp.inf))
    return _normal(root * (1 + (FAN * levels / 2 + _OWN_ROUNDINGS) * UNIT), exponent)


def _sums_of_squares(x: Array) -> tuple[list[Array], int]:
    """The sum of (s x)^2 at each scale s, of `[n]`, in one pass over x; and how many levels of FAN it took."""
    # XLA would make x^2 s^2 of (s x)^2, but for the selection.
    terms = [jnp.square(x if s == 1 else jnp.where(x != 0, x * s, x)) for s in _SCALES]
    rests, levels = [], 1

    def add(operands: Sequence[Array]) -> list[Array]:
        pairwise = lambda a, b: tuple(p + q for p, q in zip(a, b, strict=True))
        return list(lax.reduce(tuple(operands), (jnp.float32(0),) * len(_SCALES), pairwise, (0,)))

    while len(terms[0]) > FAN:
        whole = len(terms[0]) // FAN * FAN
        if whole < len(terms[0]):
            rests.append(add([t[whole:] for t in terms]))
        terms = add([t[:whole].reshape(FAN, -1) for t in terms])
        levels += 1
    rests.append(add(terms))
    return [sum(column[1:], column[0]) for column in zip(*rests, strict=True)], levels
