"""Synchronize every so many steps, whatever the models do: local SGD (Stich 2019, arXiv 1805.09767) of a fixed period.

H(t) = +inf if t is a multiple of the period, else -inf;      nothing is sent for it
"""

import jax.numpy as jnp

from fedjax8.algorithms.monitors._direction import constant
from fedjax8.algorithms.monitors.base import Monitor


def periodic(period: int) -> Monitor:
    """The monitor that asks for a synchronization at steps `period`, 2 `period`, ..., counted from 1; `period` 1 is
    `synchronous`."""
    if isinstance(period, bool) or not isinstance(period, int) or period < 1:
        raise ValueError(f"period must be an integer from 1 up; got {period!r}")
    return Monitor(constant(lambda step: jnp.where(step % period == 0, jnp.inf, -jnp.inf)))


EXAMPLES = ({"period": 3},)
