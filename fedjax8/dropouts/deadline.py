"""Stragglers: clients whose message arrives after the deadline drop out.

    seconds of client i = bytes down / B_down + v_i step_seconds steps_i + bytes up / B_up

v_i = exp(spread u_i), u_i standard normal, is the slowness of its device: drawn once for each client, so that the
median client takes `step_seconds` for a step. Log-normal speeds are a common model (as in FedScale, Lai et al. 2022,
arXiv 2105.11367, whose traces of devices have such tails); the defaults are this project's. `jitter` is the spread of a
second factor, drawn anew in every round.

Bytes are those that this client receives and sends in this round: of messages that are alternatives its own, without
the parts that it leaves out, and of several messages all. Each exchange of the round adds its own and decides who is
late; see `exchange.clock`.
"""

import functools

import jax
import jax.numpy as jnp

from fedjax8.data.batches import num_steps
from fedjax8.dropouts.base import Dropout, Speeds
from fedjax8.keys import random_key
from fedjax8.types import Array, BatchPlan, Key


def deadline(
    seconds: float,
    step_seconds: float = 0.1,
    *,
    spread: float = 0.5,
    jitter: float = 0.0,
    down_bandwidth: float = 1e6,
    up_bandwidth: float = 2.5e5,
    seed: int = 0,
    plan: BatchPlan | None = None,
) -> Dropout:
    """The dropout of stragglers.

    Args:
      seconds: the deadline, from the start of a round.
      step_seconds: of one local step on the median client.
      spread, jitter: standard deviations of the logarithm of a client's slowness, for good and in one round.
      down_bandwidth, up_bandwidth: bytes per second.
      seed: of the clients' speeds, apart from the run's seed: runs of several seeds have the same devices.
      plan: the batch plan; without it every example is a step.
    """
    if not (seconds > 0 and step_seconds >= 0 and down_bandwidth > 0 and up_bandwidth > 0 and min(spread, jitter) >= 0):
        raise ValueError(
            "need seconds and bandwidths above 0, and step_seconds, spread and jitter that are not negative; got "
            f"{seconds}, {down_bandwidth}, {up_bandwidth}, {step_seconds}, {spread}, {jitter}"
        )

    def slowness(key: Key, ids: Array, deviation: float) -> Array:
        normal = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i)))(ids)
        return jnp.exp(deviation * normal)

    def speeds(key: Key, ids: Array) -> Speeds:
        device = slowness(random_key(seed), ids, spread) * slowness(key, ids, jitter)
        same = jnp.ones(ids.shape, jnp.float32)
        return Speeds(device * step_seconds, down_bandwidth * same, up_bandwidth * same)

    steps = (lambda sizes: sizes) if plan is None else functools.partial(num_steps, plan)
    return Dropout(speeds=speeds, deadline=seconds, steps=steps)


EXAMPLES = ({"seconds": 10.0}, {"seconds": 1.0, "jitter": 0.2})
