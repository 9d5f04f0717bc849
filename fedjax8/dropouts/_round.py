"""An algorithm with dropouts in every round."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax8.dropouts.base import Dropout
from fedjax8.errors import UserError
from fedjax8.types import Algorithm, Array, Channel, Key, Link, PyTree, Way

_DRAWS = (1 << 31) - 2
"""Folded into the round's key; far from the small numbers that splitting a key uses."""


def uniform_of(key: Key, ids: Array) -> Array:
    """float32 uniform in [0, 1) of each client, from the key and its number alone."""
    return jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i)))(ids)


def with_dropout(algorithm: Algorithm, dropout: Dropout) -> Algorithm:
    """The algorithm with dropouts; reports `dropped`, their number in the round.

    The exchanges of the round, which know each client's bytes, decide who is late. A dropout keeps the state that it
    had before the round. One that drops out whatever it does is not trained: it costs no time. UserError where everyone
    must take part in every round, unless it is as a worker on a graph.
    """
    lost_of, deadline = dropout.lost, dropout.deadline
    timed = deadline < math.inf
    if lost_of is None and not timed:
        return algorithm
    if algorithm.everyone and algorithm.graph is None:
        raise UserError(
            "config.dropout: this algorithm needs every client in every round; use --config.dropout.name=none"
        )

    def round_(link: Link, state, cohort, key):
        own_key, left = jax.random.fold_in(key, _DRAWS), cohort
        lost = jnp.zeros_like(cohort.valid)
        if lost_of is not None:
            lost = cohort.reached & lost_of(own_key, cohort.ids)
            dropped = lost if isinstance(cohort.dropped, tuple) else lost | cohort.dropped
            left = cohort._replace(dropped=dropped, size=jnp.where(lost, 0, cohort.size))
        out = algorithm.round(link.until(deadline), state, left, key)
        states = out.client_states
        if timed:
            lost |= out.link.late(cohort)
            # What the late have sent in time changed their states.
            states = jax.tree.map(lambda old, new: _where(lost, old, new), cohort.states, states)
        report = out.report | {"dropped": link.count(lost)}
        return out._replace(client_states=states, report=report)

    def ways(channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        usual = algorithm.ways(channels, steps, clients)
        lost = ({channel: n for channel, n in way.items() if channel.direction == "down"} for way in usual)
        return *usual, *lost

    until = min(algorithm.deadline, deadline)
    return algorithm._replace(round=round_, ways=ways, timed=algorithm.timed or timed, deadline=until)


def _where(condition: Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """`where` with one condition for each client, `[c]`."""
    return jnp.where(condition.reshape(-1, *[1] * (if_true.ndim - 1)), if_true, if_false)
