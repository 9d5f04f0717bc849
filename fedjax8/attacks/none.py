"""Nobody attacks."""

import jax.numpy as jnp

from fedjax8.types import Attack


def none() -> Attack:
    """The attack of nobody."""
    return Attack(members=lambda ids, num_clients: jnp.zeros(jnp.shape(ids), bool))


EXAMPLES = ({},)
