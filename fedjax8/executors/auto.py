"""The default executor of the machine."""

import jax

from fedjax8.executors.chunked import chunked
from fedjax8.executors.pmap import pmap
from fedjax8.types import Executor

ACCELERATOR_CHUNK = 32
"""Clients vmapped at once on a GPU or TPU:

enough to fill it with small models, few enough for tens of MB of state each.
"""


def default_chunk() -> int:
    """Clients at once on a device of this machine."""
    return 1 if jax.default_backend() == "cpu" else ACCELERATOR_CHUNK


def auto(chunk: int | None = None, num_devices: int | None = None) -> Executor:
    """`num_devices` devices of every process, by default all; `chunk` clients at once on each, by default 1 on CPU,
    else `ACCELERATOR_CHUNK`. `python -m fedjax8.train --autotune` finds the fastest of both.

    On CPU a scan over clients beats vmapping them several times over: kernels stay plain matrices.
    """
    chunk = default_chunk() if chunk is None else chunk
    several = jax.process_count() * (num_devices or jax.local_device_count()) > 1
    return pmap(chunk, num_devices) if several else chunked(chunk)


EXAMPLES = ({}, {"chunk": 2, "num_devices": 2})
