"""One device: a scan over chunks, `chunk` clients vmapped at once."""

import functools

import jax

from fedjax8.executors._scan import scan_map_reduce
from fedjax8.types import Executor


def chunked(chunk: int = 1) -> Executor:
    """Executor that works on `chunk` clients at once on one device. Memory does not grow with the cohort.

    `chunk=1` is best on CPU, where clients one after another keep plain kernels; large chunks fill a GPU.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    return Executor(
        num_shards=1,
        shards=range(1),
        chunk=chunk,
        compile=jax.jit,
        map_reduce=functools.partial(scan_map_reduce, chunk=chunk),
        total=lambda tree: tree,
        place=jax.device_put,
    )


EXAMPLES = ({}, {"chunk": 2})
