"""Clients that attack, inside an exchange: what they train on, and what they send instead of what they learnt.

    honest client    received -> train -> contribution                              -> encode -> decode
    attacker         received -> train on changed batches -> contribution
                                 -> its change -> `Attack.send` -> contribution     -> encode -> decode

What attackers send is encoded as everything is, and its bytes count. Attackers that collude know what the honest would
send, before it is encoded: for that everyone is trained twice, with the same draws.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.types import Array, Attack, Cohort, Colluders, Contribution, Key, Partial, PyTree

_DRAWS = (1 << 31) - 1
"""Folded into a client's key for the attacker's own draws; far from the small numbers that splitting a key uses."""


def change_of(contribution: PyTree, origin: Mapping[str, PyTree]) -> PyTree:
    """float32: a contribution, with or without a leading axis, less what its parts named in `origin` are above."""
    if origin:
        above = lambda name, part: trees.subtract(part, origin[name]) if name in origin else part
        contribution = {name: above(name, part) for name, part in contribution.items()}
    return jax.tree.map(lambda x: x.astype(jnp.float32), contribution)


def as_contribution(change: PyTree, origin: Mapping[str, PyTree], like: PyTree) -> PyTree:
    """The contribution that has this change, in the dtypes of `like`."""
    if origin:
        change = {n: trees.add(part, origin[n]) if n in origin else part for n, part in change.items()}
    return jax.tree.map(lambda x, of: trees.as_dtype(x, of.dtype), change, like)


def batch_change(attack: Attack, client: Array, num_clients: int) -> PyTree:
    """`ClientRows.change` of a client."""
    change = attack.batch
    if change is None:
        return ()

    def poisoned(attacks, batch):
        return trees.select(attacks, change(batch), batch)

    return jax.tree_util.Partial(poisoned, attack.members(client, num_clients))


def attacked(
    link: Any, trained: Callable, received: PyTree, cohort: Cohort, key: Key, origin: Mapping[str, PyTree] | None
) -> Callable[[Contribution, Cohort, Key], Contribution]:
    """`(contribution, client, key) -> contribution`: what a client of this exchange sends.

    `trained(received, pool, key, client)` is what it would send by itself.
    """
    attack = link.attack
    if attack.send is None:
        return lambda out, per_client, key: out
    if origin is None:
        raise UserError(
            "config.attack: this algorithm does not say what its clients' messages change, so that attackers cannot "
            "change it; use label_flip, or an algorithm such as fedavg"
        )
    known = _colluders(link, trained, received, cohort, key, origin) if attack.collude else None

    def sent(out: Contribution, per_client: Cohort, key: Key) -> Contribution:
        own_key = jax.random.fold_in(jax.random.fold_in(key, per_client.ids), _DRAWS)
        bad = as_contribution(attack.send(own_key, change_of(out.tree, origin), known), origin, out.tree)
        return out._replace(tree=trees.select(attack.members(per_client.ids, link.num_clients), bad, out.tree))

    return sent


def _colluders(
    link: Any, trained: Callable, received: PyTree, cohort: Cohort, key: Key, origin: Mapping[str, PyTree]
) -> Colluders:
    def one(shared, per_client):
        received, pool, key = shared
        out = trained(received, pool, key, per_client)
        change = change_of(out.tree, origin)
        attacks = attack.members(per_client.ids, link.num_clients)
        honest = per_client.reached & ~attacks & (out.weight > 0) & trees.within_bounds(change)
        kept = trees.select(honest, change, trees.zeros_like(change))
        counts = honest.astype(jnp.float32), (per_client.reached & attacks).astype(jnp.float32)
        return Partial((kept, jax.tree.map(jnp.square, kept), *counts)), ()

    attack = link.attack
    (total, squares, honest, attackers), _ = link.executor.map_reduce(one, (received, link.pool, key), cohort)[0]
    mean, square = (trees.scale(1.0 / jnp.maximum(honest, 1.0), tree) for tree in (total, squares))
    deviation = jax.tree.map(lambda s, m: jnp.sqrt(jnp.maximum(s - m * m, 0.0)), square, mean)
    return Colluders(mean, deviation, honest, attackers)
