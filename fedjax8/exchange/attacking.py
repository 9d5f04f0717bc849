"""Byzantine clients inside an exchange: the batches that they train on, and the change that they send.

    honest client    received -> train -> contribution                              -> encode -> decode
    attacker         received -> train on changed batches -> contribution
                                 -> its change -> `Attack.send` -> contribution     -> encode -> decode

An attacker's contribution is encoded as any other, and its bytes count. Attackers that collude know the honest clients'
contributions before these are encoded: for that every client is trained twice, with the same draws.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.types import (
    Array,
    Attack,
    Batch,
    Cohort,
    Colluders,
    Contribution,
    Executor,
    Key,
    Partial,
    Pool,
    PyTree,
)

_DRAWS = (1 << 31) - 1
"""Folded into a client's key for the attacker's own draws; far from the small numbers that splitting a key uses."""


OwnContribution = Callable[[PyTree, Pool, Key, Cohort], Contribution]
"""`(received, pool, key, one client) -> Contribution` that the client sends by itself."""


def change_of(contribution: PyTree, origin: Mapping[str, PyTree]) -> PyTree:
    """float32 change of a contribution, with or without a leading axis: entry - origin for the entries that `origin`
    names, the entry itself for others."""
    if origin:
        contribution = {n: trees.subtract(part, origin[n]) if n in origin else part for n, part in contribution.items()}
    return jax.tree.map(lambda x: x.astype(jnp.float32), contribution)


def as_contribution(change: PyTree, origin: Mapping[str, PyTree], like: PyTree) -> PyTree:
    """The contribution that has this change, in the dtypes of `like`."""
    if origin:
        change = {n: trees.add(part, origin[n]) if n in origin else part for n, part in change.items()}
    return jax.tree.map(lambda x, of: trees.as_dtype(x, of.dtype), change, like)


def batch_change(attack: Attack, client: Array, num_clients: int) -> PyTree:
    """The poisoning of a client's batches, as `ClientRows.change`: `()` where the attack leaves batches alone."""
    change = attack.batch
    if change is None:
        return ()

    def poisoned(attacks: Array, batch: Batch) -> PyTree:
        return trees.select(attacks, change(batch), batch)

    return jax.tree_util.Partial(poisoned, attack.members(client, num_clients))


class Exchange(NamedTuple):
    """The part of a link that attackers in an exchange need."""

    attack: Attack
    executor: Executor
    pool: Pool
    num_clients: int
    """Registered clients."""


def attacked(
    exchange: Exchange,
    trained: OwnContribution,
    received: PyTree,
    cohort: Cohort,
    key: Key,
    origin: Mapping[str, PyTree] | None,
) -> Callable[[Contribution, Cohort, Key], Contribution]:
    """`(own contribution, client, key) -> contribution` that a client of this exchange sends.

    Raises:
      UserError: attackers change messages, and the algorithm gives no `origin`.
    """
    attack = exchange.attack
    if attack.send is None:
        return lambda out, per_client, key: out
    if origin is None:
        raise UserError(
            "config.attack: this algorithm does not say from which values its clients' messages start, so attackers "
            "cannot change them; use label_flip, or an algorithm such as fedavg"
        )
    known = _colluders(exchange, trained, received, cohort, key, origin) if attack.collude else None
    send, num_clients = attack.send, exchange.num_clients

    def sent(out: Contribution, per_client: Cohort, key: Key) -> Contribution:
        own_key = jax.random.fold_in(jax.random.fold_in(key, per_client.ids), _DRAWS)
        bad = as_contribution(send(own_key, change_of(out.tree, origin), known), origin, out.tree)
        return out._replace(tree=trees.select(attack.members(per_client.ids, num_clients), bad, out.tree))

    return sent


def _colluders(
    exchange: Exchange,
    trained: OwnContribution,
    received: PyTree,
    cohort: Cohort,
    key: Key,
    origin: Mapping[str, PyTree],
) -> Colluders:
    """Mean and deviation of the honest clients' changes, for which everyone is trained."""

    def one(shared: PyTree, per_client: Cohort) -> tuple[Partial, PyTree]:
        received, pool, key = shared
        out = trained(received, pool, key, per_client)
        change = change_of(out.tree, origin)
        attacks = attack.members(per_client.ids, exchange.num_clients)
        honest = per_client.reached & ~attacks & (out.weight > 0) & trees.within_bounds(change)
        kept = trees.select(honest, change, trees.zeros_like(change))
        counts = honest.astype(jnp.float32), (per_client.reached & attacks).astype(jnp.float32)
        return Partial((kept, jax.tree.map(jnp.square, kept), *counts)), ()

    attack, shared = exchange.attack, (received, exchange.pool, key)
    (total, squares, honest, attackers), _ = exchange.executor.map_reduce(one, shared, cohort)[0]
    mean, square = (trees.scale(1.0 / jnp.maximum(honest, 1.0), tree) for tree in (total, squares))
    deviation = jax.tree.map(lambda s, m: jnp.sqrt(jnp.maximum(s - m * m, 0.0)), square, mean)
    return Colluders(mean, deviation, honest, attackers)
