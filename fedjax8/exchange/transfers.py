"""Transfers that go on at the same time, with their ends and the largest simultaneous rate."""

import jax.numpy as jnp

from fedjax8.types import Array


def transfers(start: Array, num_bytes: Array, bandwidth: Array, active: Array, capacity: float) -> tuple[Array, Array]:
    """(float32 `[n]` ends, float32 largest total rate) of transfers of so many bytes from `start` on.

    Each goes at no more than its `bandwidth` in bytes a second; inactive ones transfer nothing and end at their start.
    """
    end = jnp.where(active, start + num_bytes / bandwidth, start)
    moving = active & (num_bytes > 0)
    rates = jnp.where(moving, bandwidth, 0.0)
    times = jnp.concatenate([end, start])  # ends first, so that one that begins as another ends does not add up with it
    order = jnp.argsort(times, stable=True)
    total = jnp.cumsum(jnp.concatenate([-rates, rates])[order])
    return end, jnp.maximum(jnp.max(total), 0.0)
