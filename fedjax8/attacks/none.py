"""No attack: all clients are honest."""

import jax.numpy as jnp

from fedjax8.types import Attack


def none() -> Attack:
    """The attack without attackers."""
    return Attack(members=lambda ids, num_clients: jnp.zeros(jnp.shape(ids), bool))


EXAMPLES = ({},)
