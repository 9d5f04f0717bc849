"""What a round sees of the world: send down, map clients, reduce, with codecs and an exact traffic count around it.

A `Link` is a pytree that goes in and comes out of every call, so that it can also be carried through a loop:

    received, link = link.broadcast(key, tree, cohort)
    reduced, states, link = link.map_clients(client, received, cohort, key)

Sizes are static and live in the *structure* of `link.sent` (its keys are `Channel`s with the bytes of one message,
read off the encoded message's shapes); how many messages went is counted on the device. Bytes are their product, taken
on the host in Python integers, and therefore exact even where the number of exchanges depends on data.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import trees
from fedjax8.data.batches import ClientRows, Pool
from fedjax8.types import Array, Channel, Codec, Cohort, Contribution, Execution, Key, PyTree, Reduced

DOWN, UP = "down", "up"


class Discovery(NamedTuple):
    """What a dry run of the round learned about one kind of message."""

    channel: Channel
    tree: PyTree
    """Shapes of the tree that is sent."""


class Recorder:
    """Collects `Discovery`s while a round is traced without being run. Compared by identity, as static data must be."""

    def __init__(self) -> None:
        self.found: list[Discovery] = []


@struct.dataclass
class Link:
    """See the module. Build it with `Simulation`; algorithms only call its methods."""

    pool: Pool
    down_states: dict[str, PyTree]
    sent: dict[Channel, Array]
    round_number: Array
    uplink: Codec = struct.field(pytree_node=False)
    downlink: Codec = struct.field(pytree_node=False)
    execution: Execution = struct.field(pytree_node=False)
    num_clients: int = struct.field(pytree_node=False)
    recorder: Recorder | None = struct.field(pytree_node=False, default=None)

    def broadcast(self, key: Key, tree: PyTree, cohort: Cohort, name: str = "model") -> tuple[PyTree, "Link"]:
        """One message to every client of the cohort: (the tree as they decode it, link).

        It is encoded once, with one random draw, and counted once per client that receives it.
        """
        state = self.down_states[name] if self.recorder is None else self.downlink.init(tree)
        message, state = self.downlink.encode(key, state, tree)
        count = self.execution.total(jnp.sum(cohort.valid, dtype=jnp.int32))
        link = self._count(DOWN, name, tree, message, count)
        return self.downlink.decode(message), link.replace(down_states={**self.down_states, name: state})

    def map_clients(
        self,
        client: Callable[[PyTree, PyTree, ClientRows, Key], Contribution],
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = "model",
    ) -> tuple[Reduced, PyTree, "Link"]:
        """Runs `client(received, state, rows, key)` for every client and reduces what they send.

        A contribution is encoded on the client, decoded to float32 on the server and added as it comes. One that is
        not finite is excluded and counted (`report["excluded"]`); its client keeps its old state. Returns (Reduced,
        new client states, link).
        """
        link, sizes = self, []

        def one(shared, per_client):
            received, pool, key = shared
            train_key, encode_key = jax.random.split(jax.random.fold_in(key, per_client.ids))
            rows = ClientRows(pool, per_client.start, per_client.size)
            out = client(received, per_client.states["algorithm"], rows, train_key)
            codec_state = self._uplink_state(per_client.states, name, out.tree)
            message, codec_state = self.uplink.encode(encode_key, codec_state, out.tree)
            decoded = self.uplink.decode(message)
            sizes.append((trees.shapes(out.tree), trees.shapes(message)))
            usable = per_client.valid & trees.all_finite(decoded)
            weight = jnp.where(usable, out.weight, 0.0)
            summed = {
                "tree": jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0.0), decoded),
                "weight": weight,
                "clients": usable.astype(jnp.int32),
                "sent": per_client.valid.astype(jnp.int32),
                "report": trees.select(usable, out.report, trees.zeros_like(out.report)),
            }
            new = {"algorithm": out.state, "uplink": {**per_client.states["uplink"], name: codec_state}}
            old = per_client.states if self.recorder is None else new
            return summed, trees.select(usable, new, old)

        summed, states = self.execution.map_reduce(one, (received, self.pool, key), cohort)
        link = self._count(UP, name, *sizes[0], summed["sent"])
        mean = trees.scale(1.0 / jnp.where(summed["weight"] > 0, summed["weight"], 1.0), summed["tree"])
        report = summed["report"] | {"excluded": summed["sent"] - summed["clients"]}
        return Reduced(mean, summed["weight"], summed["clients"], report), states, link

    def _uplink_state(self, states: PyTree, name: str, tree: PyTree) -> PyTree:
        return self.uplink.init(tree) if self.recorder is not None else states["uplink"][name]

    def _count(self, direction: str, name: str, tree: Any, message: Any, count: Array) -> "Link":
        channel = Channel(direction, name, trees.num_bytes(message), trees.float32_bytes(tree))
        if self.recorder is not None:
            self.recorder.found.append(Discovery(channel, trees.shapes(tree)))
        before = self.sent.get(channel, jnp.int32(0))
        return self.replace(sent={**self.sent, channel: before + count})
