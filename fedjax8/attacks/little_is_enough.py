"""A little is enough: attackers send a change just within the honest clients' spread (Baruch et al. 2019, arXiv
1902.06635, algorithm 3).

    d_bad = m - z s,      m, s mean and standard deviation of the honest changes, value by value
    z = Phi^-1((n - m' - t) / (n - m')),      t = floor(n / 2 + 1) - m'

for n clients of which m' attack: t honest clients lie further out than z, and with them the attackers are the majority.
Attackers know every honest change, so each round trains everyone twice.
"""

import jax
import jax.numpy as jnp

from fedjax8.attacks._members import members
from fedjax8.types import Array, Attack, Colluders


def largest_z(known: Colluders) -> Array:
    """z of a round; 0 where attackers are the majority by themselves."""
    supporters = jnp.clip(jnp.floor((known.honest + known.attackers) / 2 + 1) - known.attackers, 0, known.honest)
    share = (known.honest - supporters) / jnp.maximum(known.honest, 1.0)
    return jnp.where(supporters > 0, jax.scipy.special.ndtri(jnp.clip(share, 1e-6, 1 - 1e-6)), 0.0)


def little_is_enough(share: float = 0.2, z: float | None = None, *, count: int | None = None, seed: int = 0) -> Attack:
    """Attackers that send mean minus `z` deviations, by default the paper's largest z; the rest as in `sign_flip`."""

    def send(key, change, known):
        factor = largest_z(known) if z is None else z
        return jax.tree.map(lambda mean, deviation: mean - factor * deviation, known.mean, known.deviation)

    return Attack(members(share, count, seed), send=send, collude=True)


EXAMPLES = ({}, {"z": 1.5, "count": 1})
