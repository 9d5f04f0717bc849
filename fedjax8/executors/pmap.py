"""All devices of all processes: `jax.pmap` over shards of the cohort, each device scanning its own, sums by one `psum`.

The whole round runs inside the pmap: the server's step is computed on every device from the same sums, which saves
sending a model between devices. This is the only file that knows of devices.

Several processes run the same program. Each gives and gets the shards of its own devices, and holds a copy of shared
arrays on them, so that every array that a process reads is its own.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax8.executors._scan import scan_map_reduce
from fedjax8.types import Executor, Partial, PyTree

AXIS = "devices"


def pmap(chunk: int = 1, num_devices: int | None = None) -> Executor:
    """Executor that shards the cohort over `num_devices` devices of every process, `chunk` clients at once on each.

    By default over all devices. Shards are numbered process by process. Every process must have as many devices.
    """
    here, devices_of = jax.process_index(), [jax.local_devices(process_index=i) for i in range(jax.process_count())]
    counts = [len(devices) for devices in devices_of]
    if len(set(counts)) > 1:
        raise ValueError(f"every process needs as many devices, got {counts}; on CPU set --cpu_devices")
    num_local = counts[0] if num_devices is None else num_devices
    if chunk < 1 or not 1 <= num_local <= counts[0]:
        raise ValueError(f"need chunk >= 1 and 1 to {counts[0]} devices, got chunk={chunk}, num_devices={num_devices}")
    devices = [device for of_process in devices_of for device in of_process[:num_local]]
    local = Mesh(np.array(devices_of[here][:num_local]), (AXIS,))
    everywhere, split = NamedSharding(local, PartitionSpec()), NamedSharding(local, PartitionSpec(AXIS))

    def compile_(f):
        return _Compiled(jax.pmap(f, axis_name=AXIS, in_axes=(None, 0), out_axes=(None, 0), devices=devices), split)

    reduced = _in_one_message if len(devices_of) > 1 else lambda reduce, tree: reduce(tree, AXIS)

    def total(tree):
        return reduced(jax.lax.psum, tree)

    def map_reduce(f, shared, per_client):
        partial, kept = scan_map_reduce(f, shared, per_client, chunk)
        return Partial(total(partial.sum), reduced(jax.lax.pmax, partial.max)), kept

    def own(tree):
        def part(x):
            size = x.shape[0] // len(devices)
            return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(AXIS) * size, size)

        return jax.tree.map(part, tree)

    return Executor(
        num_shards=len(devices),
        shards=range(here * num_local, (here + 1) * num_local),
        chunk=chunk,
        compile=compile_,
        map_reduce=map_reduce,
        total=total,
        gather=lambda tree: jax.lax.all_gather(tree, AXIS, tiled=True),
        own=own,
        place=functools.partial(jax.device_put, device=everywhere),
        collect=_gathered if len(devices_of) > 1 else lambda parts: parts,
    )


class _Compiled:
    """`mapped` on parts that are dealt over this process's devices in order."""

    def __init__(self, mapped: Any, split: NamedSharding):
        self._mapped, self._split = mapped, split

    def __call__(self, shared: PyTree, parts: PyTree) -> tuple[PyTree, PyTree]:
        # XLA for CPU can stall for good where dozens of small programs wait for one in which devices meet: so it ends
        # first.
        shared_out, parts_out = jax.block_until_ready(self._mapped(shared, self._dealt(parts)))
        return shared_out, _joined(parts_out)

    def lower(self, shared: PyTree, parts: PyTree) -> jax.stages.Lowered:
        """The program lowered, as by functions of `jax.jit`."""
        return self._mapped.lower(shared, self._dealt(parts))

    def _dealt(self, parts: PyTree) -> PyTree:
        shards = self._split.num_devices
        for x in jax.tree.leaves(parts):
            if len(x) % shards:
                raise ValueError(f"{len(x)} clients do not divide over {shards} devices")
        return jax.device_put(jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), parts), self._split)


@jax.jit
def _joined(parts: PyTree) -> PyTree:
    """`[shards, n, ...]` as `[shards * n, ...]`, all leaves in one program."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), parts)


def _in_one_message(reduce, tree):
    """`reduce` over the axis, all leaves of a dtype as one array.

    Between CPU processes every array is a message of its own, and a model has many small ones.
    """
    leaves, structure = jax.tree.flatten(tree)
    out = [jnp.asarray(leaf) for leaf in leaves]
    for dtype in dict.fromkeys(leaf.dtype for leaf in out):  # in the same order everywhere
        places = [i for i, leaf in enumerate(out) if leaf.dtype == dtype]
        whole = reduce(jnp.concatenate([out[i].reshape(-1) for i in places]), AXIS)
        ends = np.cumsum([out[i].size for i in places])
        for i, part in zip(places, jnp.split(whole, ends[:-1]), strict=True):
            out[i] = part.reshape(out[i].shape)
    return jax.tree.unflatten(structure, out)


def _gathered(parts):
    return multihost_utils.process_allgather(parts, tiled=True)


EXAMPLES = ({}, {"chunk": 2})
