"""All local devices: `jax.pmap` over shards of the cohort, each device scanning its own, sums by one `psum`.

The whole round runs inside the pmap: the server's step is computed on every device from the same sums, which saves
sending a model between devices. This is the only file that knows of devices.
"""

import functools

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax8.cohorts._scan import scan_map_reduce
from fedjax8.types import Execution, Partial

AXIS = "devices"


def pmap(chunk: int = 1, num_devices: int | None = None) -> Execution:
    """Executor that shards the cohort over `num_devices` local devices (default all), `chunk` clients at once."""
    devices = jax.local_devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if chunk < 1 or not 1 <= num_devices <= len(devices):
        raise ValueError(
            f"need chunk >= 1 and 1 to {len(devices)} devices, got chunk={chunk}, num_devices={num_devices}"
        )
    devices = devices[:num_devices]
    mesh = Mesh(np.array(devices), (AXIS,))
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))

    def compile_(f):
        mapped = jax.pmap(f, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=devices)

        def call(shared, parts):
            for x in jax.tree.leaves(parts):
                if len(x) % num_devices:
                    raise ValueError(f"{len(x)} clients do not divide over {num_devices} devices")
            shards = jax.tree.map(lambda x: x.reshape(num_devices, -1, *x.shape[1:]), parts)
            shared_out, parts_out = mapped(shared, jax.device_put(shards, split))
            return shared_out, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts_out)

        return call

    def total(tree):
        return jax.lax.psum(tree, AXIS)

    def map_reduce(f, shared, per_client):
        partial, kept = scan_map_reduce(f, shared, per_client, chunk)
        return Partial(total(partial.sum), jax.lax.pmax(partial.max, AXIS)), kept

    return Execution(
        num_shards=num_devices,
        shards=range(num_devices),
        chunk=chunk,
        compile=compile_,
        map_reduce=map_reduce,
        total=total,
        place=functools.partial(jax.device_put, device=everywhere),
    )


EXAMPLES = ({}, {"chunk": 2})
