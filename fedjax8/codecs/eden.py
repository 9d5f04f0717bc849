"""A few bits per value after a random rotation (EDEN), on the best grid for a Gaussian.

    z = R x,   u = z sqrt(D) / ||z||,   c_i = the centroid nearest to u_i,   x^ = R' (k c),   k = ||z||**2 / <c, z>

with R a Hadamard transform of random signs (`numerics.hadamard`), of D values, the leaf padded to a power of two. The
centroids are those of the optimal (Lloyd-Max) quantizer of the standard normal distribution with 2**bits values.

Reference: Vargaftik et al., "EDEN: Communication-Efficient and Robust Distributed Mean Estimation" (arXiv 2108.08842).
Formulas from the field's literature. Ours: whole bits only (the authors' code mixes two tables for fractional ones and
samples for less than one), a key per message drawn from its encoding key, and the least-squares scale as an option.

Guarantees, per leaf. `unbiased`: <x^, x> = ||x||**2 for every key; as in `drive`, E[x^] = x if R were uniform over all
rotations, and with the Hadamard rotation nearly so, hence not claimed. `min_error`: k = <c, z> / ||c||**2, a
contraction; for error feedback. For large D the error over ||x||**2 tends to M / (1 - M) and M, with M the quantizer's
mean squared error: 0.3634, 0.1175, 0.0345, 0.0095 for 1 to 4 bits. No useful bound per element is known. An all-zero
leaf decodes to zeros. One bit is `drive`.

Message layout per leaf: ceil(D * bits / 8) bytes of packed codes, the float32 scale k / 2**h (2**h as in `drive`), 8
bytes of rotation key. Other leaves stay float32.
"""

import functools
import math

import jax.numpy as jnp
import numpy as np
from flax import struct

from fedjax8.codecs._leaves import (
    check_bits,
    check_one_of,
    divided,
    half_power,
    l2_norm,
    largest_magnitude,
    leafwise,
    message_key,
    unit_of,
    within,
)
from fedjax8.keys import as_key
from fedjax8.numerics import pack_bits, padded_size, rotate, unpack_bits, unrotate
from fedjax8.types import Array, Codec

SCALES = ("unbiased", "min_error")


@struct.dataclass
class RotatedCodes:
    """A leaf's nearest centroids after rotation, on the wire. Its shape is static."""

    codes: Array
    """uint8 `[packed_size(D, bits)]`: indices into `centroids(bits)`."""
    scale: Array
    """float32 scalar k / 2**h."""
    key: Array
    """uint32 `[2]`: key of the rotation."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def eden(bits: int = 2, scale: str = "unbiased", *, min_ndim: int = 2, min_size: int = 0) -> Codec:
    """Codec that rotates a leaf at random and rounds it to the Gaussian's Lloyd-Max centroids.

    Args:
      bits: width of a code, 1 to 8.
      scale: `unbiased` (over uniform rotations) or `min_error`.
      min_ndim, min_size: leaves of at least that many dimensions and elements are encoded.

    Measures `quantization_error`.
    """
    check_bits(bits)
    check_one_of("scale", scale, SCALES)
    table = np.array(centroids(bits), np.float32)
    thresholds = (table[1:] + table[:-1]) / 2

    def encode_leaf(key, x):
        words = message_key(key)
        whole = unit_of(largest_magnitude(x))
        z = rotate(as_key(words), x * (1 / whole))
        norm = l2_norm(z)
        u = divided(z, norm) * math.sqrt(z.size)
        codes = _search(thresholds, u)
        c = jnp.asarray(table)[codes]
        product = jnp.sum(c * u)
        chosen = divided(jnp.float32(z.size), product) if scale == "unbiased" else product / jnp.sum(jnp.square(c))
        sent = norm * chosen / math.sqrt(z.size) * np.float32(2.0 ** -half_power(z.size)) * whole
        return RotatedCodes(pack_bits(codes, bits), sent, words, x.shape)

    def decode_leaf(message):
        size = padded_size(math.prod(message.shape))
        codes = unpack_bits(message.codes, bits, size)
        whole = unit_of(message.scale)
        own = message.scale * (1 / whole) * np.float32(2.0 ** half_power(size))
        return within(whole * unrotate(as_key(message.key), own * jnp.asarray(table)[codes], message.shape))

    return leafwise(
        encode_leaf,
        decode_leaf,
        RotatedCodes,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=False,
        contracts=scale == "min_error",
        aligned=True,
    )


def _search(thresholds: np.ndarray, u: Array) -> Array:
    """int32: how many of the increasing thresholds lie at or below each value, found bit by bit."""
    step = (thresholds.size + 1) // 2
    code = jnp.where(u >= thresholds[step - 1], step, 0)
    while step > 1:
        step //= 2
        code = jnp.where(u >= jnp.asarray(thresholds)[code + (step - 1)], code + step, code)
    return code


@functools.cache
def centroids(bits: int) -> tuple[float, ...]:
    """The 2**bits values of the standard normal distribution's Lloyd-Max quantizer, increasing, in float64.

    Each is the mean of the distribution between the midpoints to its neighbors. Found for the positive half by Newton's
    method on those conditions, from Panter and Dite's density of values (a normal one of three times the variance).

    Example:
      >>> [round(c, 4) for c in centroids(2)]
      [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    from statistics import NormalDist

    half = 2 ** (bits - 1)
    c = np.array([NormalDist(0, math.sqrt(3)).inv_cdf(0.5 + (i + 0.5) / (2 * half)) for i in range(half)])
    for _ in range(100):
        edges = np.concatenate([[0.0], (c[1:] + c[:-1]) / 2, [np.inf]])
        density = np.exp(-np.square(edges) / 2) / math.sqrt(2 * math.pi)
        mass = -np.diff([math.erfc(e / math.sqrt(2)) / 2 for e in edges])
        mean = -np.diff(density) / mass
        # d mean / d edge, below and above; an edge moves half as fast as each of the two centroids beside it
        below = density[:-1] * (mean - edges[:-1]) / mass
        above = np.append(density[1:-1] * (edges[1:-1] - mean[:-1]) / mass[:-1], 0.0)
        below[0] = 0.0  # the edge at zero does not move
        jacobian = np.diag(1 - (below + above) / 2) - np.diag(above[:-1] / 2, 1) - np.diag(below[1:] / 2, -1)
        step = np.linalg.solve(jacobian, mean - c)
        c = c + step
        if np.abs(step).max() < 1e-9:  # the error after the step is of the order of its square
            break
    return (*(-c[::-1]).tolist(), *c.tolist())


EXAMPLES = ({}, {"bits": 4, "scale": "min_error", "min_ndim": 0})
