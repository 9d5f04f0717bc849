"""Uniform stochastic quantization (QSGD): evenly spaced values from -norm to norm, in 1 to 8 bits.

    t = s x / norm,   q = floor(t) + [u < t - floor(t)],   u uniform,   x^ = norm q / s,   E[x^] = x

with s levels on either side of zero: 2s + 1 values, s = 2**(bits - 1) - 1 unless given. One bit has no room for a zero;
there x^ = +-norm, + with probability (1 + x / norm) / 2.

Reference: Alistarh et al., "QSGD" (arXiv 1610.02132), with the Euclidean norm, and buckets of consecutive values each
with its own norm. The norm max|x| is the usual variant. Formulas from the field's literature. Ours: values have one
fixed width (the paper's Elias code is smaller), signs are not stored apart but codes are q + s, and the one-bit grid.

Guarantees, per leaf or bucket of d values: unbiased; |x^ - x| <= norm / s; with the Euclidean norm
E||x^ - x||**2 <= min(d / s**2, sqrt(d) / s) ||x||**2; with either norm at most d norm**2 / (4 s**2). (One bit:
|x^ - x| <= norm + |x| and E||x^ - x||**2 = d norm**2 - ||x||**2.)

Message layout per leaf of n values: ceil(n * bits / 8) bytes of packed codes, then a float32 norm for the leaf or for
each of its ceil(n / bucket) buckets. Other leaves stay float32.
"""

import math

import jax.numpy as jnp
import numpy as np
from flax import struct

from fedjax8.codecs._leaves import (
    check_bits,
    check_one_of,
    divided,
    into_rows,
    l2_norm,
    largest_magnitude,
    leafwise,
    per_value,
    round_at_random,
    within,
)
from fedjax8.numerics import pack_bits, unpack_bits
from fedjax8.types import Array, Codec

NORMS = ("l2", "max")


@struct.dataclass
class Uniform:
    """A quantized leaf on the wire. Its shape is static: both sides know it."""

    codes: Array
    """uint8 `[packed_size(n, bits)]`: codes q + s."""
    norm: Array
    """float32 `[ceil(n / bucket)]`."""
    shape: tuple[int, ...] = struct.field(pytree_node=False)


def uniform(
    bits: int = 8,
    norm: str = "max",
    *,
    levels: int | None = None,
    bucket: int | None = None,
    min_ndim: int = 2,
    min_size: int = 0,
) -> Codec:
    """Codec that rounds values at random to evenly spaced ones.

    Args:
      bits: width of a code, 1 to 8.
      norm: `l2`, that of the paper, or `max`: less variance for the same bits where the largest value is well below the
        Euclidean norm, which is the rule.
      levels: s, at most 2**(bits - 1) - 1, which is the default; for comparisons at an s from the literature.
      bucket: values that share a norm (512 is usual); None for one norm per leaf.
      min_ndim, min_size: leaves of at least that many dimensions and elements are quantized.

    Measures `quantization_error`.
    """
    check_bits(bits)
    check_one_of("norm", norm, NORMS)
    most = 2 ** (bits - 1) - 1
    if levels is not None and not 1 <= levels <= most:
        allowed = f"from 1 to {most} for bits={bits}" if most else "left out for bits=1, which has no zero"
        raise ValueError(f"levels must be {allowed}; got {levels}")
    if bucket is not None and bucket < 1:
        raise ValueError(f"bucket must be at least 1; got {bucket}")
    s = levels or most

    norm_of = l2_norm if norm == "l2" else largest_magnitude

    def norms(x):
        return norm_of(x).reshape(1) if bucket is None else norm_of(into_rows(x, bucket), axis=-1)

    def encode_leaf(key, x):
        shape, x = x.shape, x.reshape(-1)
        norm = norms(x)
        unit = jnp.clip(divided(x, per_value(norm, bucket, x.shape)), -1.0, 1.0)
        codes = round_at_random(key, unit * s) + s if s else round_at_random(key, 0.5 * unit + 0.5)
        return Uniform(pack_bits(codes, bits), norm, shape)

    def decode_leaf(message):
        codes = unpack_bits(message.codes, bits, math.prod(message.shape)).astype(jnp.int32)
        q = codes - s if s else 2 * codes - 1
        q = q.astype(jnp.float32).reshape(message.shape)
        # A share of the norm first, as a step of it might be subnormal; the selection keeps XLA to this order.
        share = jnp.where(q == 0, 0.0, q * np.float32(1.0 / (s or 1)))
        return within(share * per_value(message.norm, bucket, message.shape))

    def bound(x):
        norm = per_value(norms(x), bucket, x.shape)
        return norm / s if s else (norm + jnp.abs(x)) * (1 + 2.0**-22)  # the sum is rounded, maybe down

    # The error of values below a step is at most sqrt(d) / (2 s) of the squared norm, that of others at most 1/8; with
    # the Euclidean norm, d / s**2 and sqrt(d) / s hold.
    root = math.inf if bucket is None or not s else math.sqrt(bucket) / s
    return leafwise(
        encode_leaf,
        decode_leaf,
        Uniform,
        min_ndim=min_ndim,
        min_size=min_size,
        unbiased=True,
        error_bound=bound,
        contracts=root < 1,
    )


EXAMPLES = ({}, {"bits": 4, "norm": "l2", "bucket": 16}, {"bits": 1, "min_ndim": 0})
