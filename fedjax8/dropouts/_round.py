"""An algorithm some of whose clients are lost in every round."""

import jax
import jax.numpy as jnp

from fedjax8.errors import UserError
from fedjax8.types import Algorithm, Array, Dropout, Key

_DRAWS = (1 << 31) - 2
"""Folded into the round's key; far from the small numbers that splitting a key uses."""


def uniform_of(key: Key, ids: Array) -> Array:
    """float32 uniform in [0, 1) of each client, from the key and its number alone."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(ids)


def with_dropout(algorithm: Algorithm, dropout: Dropout) -> Algorithm:
    """The algorithm in a world where clients are lost; reports `dropped`, how many were in the round.

    A lost client is not trained: it costs no time. UserError where everyone must take part in every round.
    """
    lost_of = dropout.lost
    if lost_of is None:
        return algorithm
    if algorithm.everyone:
        raise UserError(
            "config.dropout: this algorithm needs every client in every round; use --config.dropout.name=none"
        )

    def round_(link, state, cohort, key):
        size_of = {"up": 0, "down": 0}
        for channel in link.sent:
            size_of[channel.direction] += channel.message_bytes
        own_key = jax.random.fold_in(key, _DRAWS)
        lost = cohort.valid & lost_of(own_key, cohort.ids, cohort.size, size_of["down"], size_of["up"])
        left = cohort._replace(dropped=lost, size=jnp.where(lost, 0, cohort.size))
        out = algorithm.round(link, state, left, key)
        return out._replace(report=out.report | {"dropped": link.execution.total(jnp.sum(lost, dtype=jnp.int32))})

    return algorithm._replace(round=round_)
