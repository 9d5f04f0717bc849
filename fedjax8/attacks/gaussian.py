"""Noise: attackers send N(0, deviation^2) in place of every value of their change (Blanchard et al. 2017, "Machine
Learning with Adversaries", section 5)."""

import jax

from fedjax8.attacks._members import members
from fedjax8.types import Attack


def gaussian(share: float = 0.2, deviation: float = 1.0, *, count: int | None = None, seed: int = 0) -> Attack:
    """Attackers that send noise of this standard deviation; `share`, `count` and `seed` as in `sign_flip`."""
    if not deviation > 0:
        raise ValueError(f"deviation must be above 0; got {deviation}")

    def send(key, change, known):
        leaves, structure = jax.tree.flatten(change)
        keys = jax.random.split(key, max(len(leaves), 1))
        noise = [deviation * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
        return jax.tree.unflatten(structure, noise)

    return Attack(members(share, count, seed), send=send)


EXAMPLES = ({}, {"deviation": 100.0, "count": 1})
