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
    codec: Codec
    """What encodes it."""


class Recorder:
    """Collects `Discovery`s while a round is traced without being run. Compared by identity, as static data must be."""

    def __init__(self) -> None:
        self.found: list[Discovery] = []

    def note(self, discovery: Discovery) -> None:
        """Adds one; ValueError if its channel is known with another tree, since codec state belongs to a channel."""
        for other in self.found:
            if other.channel[:2] == discovery.channel[:2] and other.tree != discovery.tree:
                direction, name, *_ = other.channel
                raise ValueError(f"two different trees are sent {direction} as {name!r}; give them different names")
        if all(other.channel != discovery.channel for other in self.found):
            self.found.append(discovery)


@struct.dataclass
class Link:
    """See the module. `simulate` builds it; algorithms only call its methods."""

    pool: Pool
    down_states: dict[str, PyTree]
    sent: dict[Channel, Array]
    round_number: Array
    uplink: Codec = struct.field(pytree_node=False)
    downlink: Codec = struct.field(pytree_node=False)
    execution: Execution = struct.field(pytree_node=False)
    num_clients: int = struct.field(pytree_node=False)
    recorder: Recorder | None = struct.field(pytree_node=False, default=None)

    def broadcast(
        self, key: Key, tree: PyTree, cohort: Cohort, name: str = "model", codec: Codec | None = None
    ) -> tuple[PyTree, "Link"]:
        """One message to every client of the cohort: (the tree as they decode it, link).

        It is encoded once, with one random draw, and counted once per client that receives it. `codec` stands in for
        the downlink codec on this channel.
        """
        codec = self.downlink if codec is None else codec
        state = codec.init(tree) if self.recorder else self.down_states[name]
        message, state = codec.encode(key, state, tree)
        count = self.execution.total(jnp.sum(cohort.valid, dtype=jnp.int32))
        link = self._count(DOWN, name, codec, tree, message, count)
        if not self.recorder:
            link = link.replace(down_states={**self.down_states, name: state})
        return codec.decode(message), link

    def map_clients(
        self,
        client: Callable[[PyTree, PyTree, ClientRows, Key], Contribution],
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = "model",
        codec: Codec | None = None,
    ) -> tuple[Reduced, PyTree, "Link"]:
        """Runs `client(received, state, rows, key)` for every client and reduces what they send.

        A contribution is encoded on the client, decoded to float32 on the server and added as it comes. A client whose
        contribution, state or report is not finite, or whose weight is not a number from 0 up, is excluded and counted
        (`report["excluded"]`) and keeps its old state. `codec` stands in for the uplink codec on this channel. Returns
        (Reduced, new client states, link).
        """
        codec, kinds = self.uplink if codec is None else codec, []

        def one(shared, per_client):
            received, pool, key = shared
            train_key, encode_key = jax.random.split(jax.random.fold_in(key, per_client.ids))
            rows = ClientRows(pool, per_client.start, per_client.size)
            out = client(received, per_client.states["algorithm"], rows, train_key)
            own = per_client.states["uplink"]
            message, codec_state = codec.encode(
                encode_key, codec.init(out.tree) if self.recorder else own[name], out.tree
            )
            decoded = codec.decode(message)
            kinds.append((trees.shapes(out.tree), trees.shapes(message)))
            # What is sent is looked at before it is encoded too: an 8-bit format saturates infinities.
            usable = per_client.valid & trees.all_finite((out.tree, out.state, out.report, decoded))
            usable &= jnp.isfinite(out.weight) & (out.weight >= 0)
            weight = jnp.where(usable, out.weight, 0.0)
            summed = {
                "tree": jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0.0), decoded),
                "weight": weight,
                "clients": usable.astype(jnp.int32),
                "sent": per_client.valid.astype(jnp.int32),
                "report": trees.select(usable, out.report, trees.zeros_like(out.report)),
            }
            new = {"algorithm": out.state, "uplink": own if self.recorder else {**own, name: codec_state}}
            return summed, trees.select(usable, new, per_client.states)

        summed, states = self.execution.map_reduce(one, (received, self.pool, key), cohort)
        tree, message = kinds[0]
        link = self._count(UP, name, codec, tree, message, summed["sent"])
        total = jnp.where(summed["weight"] > 0, summed["weight"], 1.0)
        mean = jax.tree.map(lambda x, like: _as_dtype(x / total, like.dtype), summed["tree"], tree)
        report = summed["report"] | {"excluded": summed["sent"] - summed["clients"]}
        return Reduced(mean, summed["weight"], summed["clients"], report), states, link

    def _count(self, direction: str, name: str, codec: Codec, tree: Any, message: Any, count: Array) -> "Link":
        """The link with `count` more messages of this kind. A recorder notes the kind and leaves the link as it is, so
        that a round can be traced with the link in a loop before its channels are known."""
        channel = Channel(direction, name, trees.num_bytes(message), trees.float32_bytes(tree))
        if self.recorder:
            self.recorder.note(Discovery(channel, trees.shapes(tree), codec))
            return self
        return self.replace(sent={**self.sent, channel: self.sent[channel] + count})


def _as_dtype(mean: Array, dtype: Any) -> Array:
    """A mean in the dtype of what was averaged; integers to the nearest."""
    return mean.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else jnp.round(mean).astype(dtype)
