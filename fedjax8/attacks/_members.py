"""Choice of the attackers, and an algorithm under attack."""

from collections.abc import Callable

import jax.numpy as jnp

from fedjax8.data.batches import shuffled
from fedjax8.keys import random_key
from fedjax8.types import Algorithm, Array, Attack, Link


def members(share: float, count: int | None, seed: int) -> Callable[[Array, int], Array]:
    """`(client ids, K) -> bool`: clients 0 to `count` - 1, or else the nearest whole number to `share` K of them,
    drawn without replacement by `seed` alone.

    Raises ValueError unless share is from 0 to 1 and count not negative.
    """
    if not 0 <= share <= 1 or (count is not None and count < 0):
        raise ValueError(f"need a share from 0 to 1 and a count that is not negative; got {share} and {count}")

    def of(ids: Array, num_clients: int) -> Array:
        if count is not None:
            return ids < count
        place = shuffled(random_key(seed), ids, jnp.int32(num_clients))  # a permutation, so the number is exact
        return (place < round(share * num_clients)) & (ids < num_clients)

    return of


def attacked(algorithm: Algorithm, attack: Attack) -> Algorithm:
    """The algorithm under attack by some clients; reports `attackers`, their number in the round."""
    if attack.batch is None and attack.send is None:
        return algorithm

    def round_(link: Link, state, cohort, key):
        out = algorithm.round(link.replace(attack=attack), state, cohort, key)
        present = cohort.reached & attack.members(cohort.ids, link.num_clients)
        return out._replace(report=out.report | {"attackers": link.count(present)})

    return algorithm._replace(round=round_)
