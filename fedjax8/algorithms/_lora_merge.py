"""Merges of many clients' low-rank factors on a server: means, exact sums, and the residual of the mean.

Client i holds A_i [k, r] and B_i [r, d] of a layer that adds x A_i B_i, and weighs p_i, with sum_i p_i = 1. Wanted is
sum_i p_i A_i B_i. Arrays are stacked over clients, `a [C, k, r]`, `b [C, r, d]`, `p [C]`; of a convolution k is
everything but the outputs, in one axis (`as_matrices`). A client of weight 0 may be padding, if its factors are finite.

- `mean`: FedIT (arXiv 2305.05644), the mean of each factor. Its product is off by sum_i p_i (A_i - A) (B_i - B), which
  is zero where all A_i or all B_i are equal, as in FFA-LoRA.
- `stack`: FLoRA (arXiv 2409.05976), exact with rank C r, for clients of different ranks too (pad with zeros).
- `residual`: FedEx-LoRA (arXiv 2410.09432), the error of `mean`, of rank (C - 1) r at most.
- `by_norm`, `truncate`: HetLoRA (arXiv 2401.06432), means weighted by the norm of a client's change, between
  clients of different ranks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8.types import Array


class Factors(NamedTuple):
    """A low-rank matrix a b."""

    a: Array
    """float32 `[..., k, r]`."""
    b: Array
    """float32 `[..., r, d]`."""

    @property
    def product(self) -> Array:
        """float32 `[..., k, d]`."""
        return self.a @ self.b


def as_matrices(a: Array, b: Array) -> Factors:
    """Stacked factors of a dense layer or a convolution, `a [C, ..., k, r]`, as matrices."""
    return Factors(a.reshape(len(a), -1, a.shape[-1]), b)


def mean(clients: Factors, p: Array) -> Factors:
    """FedIT: sum_i p_i A_i and sum_i p_i B_i."""
    return jax.tree.map(lambda x: jnp.tensordot(p, x, 1), clients)


def stack(clients: Factors, p: Array) -> Factors:
    """FLoRA: p_i A_i and B_i, a pair for each client, whose products sum to sum_i p_i A_i B_i; p is in the first
    alone."""
    return clients._replace(a=p[:, None, None] * clients.a)


def residual(clients: Factors, p: Array) -> Factors:
    """FedEx-LoRA: a pair for each client, whose products sum to sum_i p_i A_i B_i minus the product of `mean`.

    Since sum_i p_i (B_i - B) = 0 it is the sum of p_i (A_i - A_j) (B_i - B) for any j. With j the last client that
    weighs something, its own pair is zero and need not travel.
    """
    last = clients.a[last_of(p)]
    return Factors(p[:, None, None] * (clients.a - last), clients.b - jnp.tensordot(p, clients.b, 1))


def last_of(p: Array) -> Array:
    """int32: the last client that weighs something."""
    return jnp.max(jnp.where(p > 0, jnp.arange(len(p)), 0))


def summed(pairs: Factors) -> Array:
    """The sum of the products of stacked pairs, float32 `[k, d]`, as the product of matrices `[k, C r]`, `[C r, d]`."""
    a, b = pairs
    return a.swapaxes(0, 1).reshape(a.shape[1], -1) @ b.reshape(-1, b.shape[-1])


def frobenius(clients: Factors) -> Array:
    """float32 `[C]`: the Frobenius norm of each A_i B_i, by two matrices r x r instead of the product.

    Factors are scaled to a largest value of 1 first: the square of a norm need not have a float32 where that has.
    """
    largest = jax.tree.map(lambda x: jnp.max(jnp.abs(x), axis=(-2, -1), keepdims=True), clients)
    a, b = jax.tree.map(lambda x, most: x / jnp.where(most > 0, most, 1.0), clients, largest)
    squares = jnp.sum((a.swapaxes(-1, -2) @ a) * (b @ b.swapaxes(-1, -2)), axis=(-2, -1))
    return jnp.sqrt(jnp.maximum(squares, 0.0)) * (largest.a * largest.b)[..., 0, 0]


def by_norm(clients: Factors, valid: Array) -> Array:
    """HetLoRA: float32 weights `[C]` in proportion to `frobenius`, over the clients where `valid` is 1.

    Equal weights where all products are still zero.
    """
    norms = frobenius(clients) * valid
    some = jnp.sum(norms) > 0
    share = jnp.where(some, norms, valid)
    return share / jnp.maximum(jnp.sum(share), jnp.finfo(jnp.float32).tiny)


def truncate(factors: Factors, rank: Array | int) -> Factors:
    """HetLoRA: the first `rank` columns of A and rows of B, zeros in place of the others; shapes stay."""
    kept = (jnp.arange(factors.a.shape[-1]) < rank).astype(jnp.float32)
    return Factors(factors.a * kept, factors.b * kept[:, None])
