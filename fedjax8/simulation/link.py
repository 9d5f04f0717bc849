"""What a round sees of the world: send down, map clients, reduce, with codecs and an exact traffic count around it.

A `Link` is a pytree that goes in and comes out of every call, so that it can also be carried through a loop:

    received, link = link.broadcast(key, tree, cohort)
    reduced, states, link = link.map_clients(client, received, cohort, key)

Sizes are static and live in the *structure* of `link.sent` (its keys are `Channel`s with the bytes of one message,
read off the encoded message's shapes); how many messages went is counted on the device. Bytes are their product, taken
on the host in Python integers, and therefore exact even where the number of exchanges depends on data.

What a codec measures of its own work (clipped values, quantization error) is summed in `link.measured`, for the usable
messages of both directions, under names such as `uplink_clipped_fraction`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import trees
from fedjax8.data.batches import ClientRows, Pool
from fedjax8.types import (
    Array,
    Channel,
    Codec,
    Cohort,
    Contribution,
    Execution,
    Key,
    Partial,
    PyTree,
    Ratio,
    Reduced,
)

DOWN, UP = "down", "up"
MODEL = "model"
"""The channel of the messages that every round has."""


class Discovery(NamedTuple):
    """What a dry run of the round learned about one kind of message."""

    channel: Channel
    tree: PyTree
    """Shapes of the tree that is sent."""
    codec: Codec
    """What encodes it."""
    measured: dict[str, Ratio]
    """Shapes of what the codec measures, under the names it is logged by."""


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
    measured: dict[str, Ratio]
    round_number: Array
    uplink: Codec = struct.field(pytree_node=False)
    downlink: Codec = struct.field(pytree_node=False)
    execution: Execution = struct.field(pytree_node=False)
    num_clients: int = struct.field(pytree_node=False)
    recorder: Recorder | None = struct.field(pytree_node=False, default=None)

    def broadcast(
        self, key: Key, tree: PyTree, cohort: Cohort, name: str = MODEL, codec: Codec | None = None
    ) -> tuple[PyTree, "Link"]:
        """One message to every client of the cohort: (the tree as they decode it, link).

        It is encoded once, with one random draw, and counted once per client that receives it. `codec` stands in for
        the downlink codec on this channel.
        """
        codec = self.downlink if codec is None else codec
        state = codec.init(tree) if self.recorder else self.down_states[name]
        with jax.named_scope("download"):
            message, after = codec.encode(key, state, tree)
            decoded = codec.decode(state, message)
            count = self.execution.total(jnp.sum(cohort.valid, dtype=jnp.int32))
            link = self._count(DOWN, name, codec, tree, message, count, codec.measure(tree, decoded))
        if not self.recorder:
            link = link.replace(down_states={**self.down_states, name: after})
        return decoded, link

    def map_clients(
        self,
        client: Callable[[PyTree, PyTree, ClientRows, Key], Contribution],
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = MODEL,
        codec: Codec | None = None,
        watch: Callable[[PyTree], PyTree] = lambda decoded: (),
    ) -> tuple[Reduced, PyTree, "Link"]:
        """Runs `client(received, state, rows, key)` for every client and reduces what they send.

        A contribution is encoded on the client, decoded to float32 on the server and added as it comes. A client whose
        contribution, state or report is not finite, or whose weight is not a number from 0 up, is excluded and counted
        (`report["excluded"]`) and keeps its old state. `codec` stands in for the uplink codec on this channel; `watch`
        names the values in a decoded contribution whose smallest and largest over clients are wanted too. Returns
        (Reduced, new client states, link).
        """
        codec, kinds = self.uplink if codec is None else codec, []

        def one(shared, per_client):
            received, pool, key = shared
            train_key, encode_key = jax.random.split(jax.random.fold_in(key, per_client.ids))
            rows = ClientRows(pool, per_client.start, per_client.size)
            with jax.named_scope("train"):
                out = client(received, per_client.states["algorithm"], rows, train_key)
            own = per_client.states["uplink"]
            with jax.named_scope("encode"):
                before = codec.init(out.tree) if self.recorder else own[name]
                message, codec_state = codec.encode(encode_key, before, out.tree)
                decoded = codec.decode(before, message)
            kinds.append((trees.shapes(out.tree), trees.shapes(message)))
            # What is sent is looked at before it is encoded too: an 8-bit format saturates infinities.
            usable = per_client.valid & trees.all_finite((out.tree, out.state, out.report, decoded))
            usable &= jnp.isfinite(out.weight) & (out.weight >= 0)
            weight = jnp.where(usable, out.weight, 0.0)
            sums = {
                "tree": jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0.0), decoded),
                "weight": weight,
                "clients": usable.astype(jnp.int32),
                "sent": per_client.valid.astype(jnp.int32),
                "report": _if(usable, (out.report, codec.measure(out.tree, decoded))),
            }
            seen = watch(decoded)
            extremes = jax.tree.map(lambda x: jnp.where(weight > 0, x, -jnp.inf), (seen, trees.scale(-1.0, seen)))
            new = {"algorithm": out.state, "uplink": own if self.recorder else {**own, name: codec_state}}
            return Partial(sums, extremes), trees.select(usable, new, per_client.states)

        with jax.named_scope("reduce"):
            (sums, (highest, negated)), states = self.execution.map_reduce(one, (received, self.pool, key), cohort)
        tree, message = kinds[0]
        report, measured = sums["report"]
        link = self._count(UP, name, codec, tree, message, sums["sent"], measured)
        total = jnp.where(sums["weight"] > 0, sums["weight"], 1.0)
        mean = jax.tree.map(lambda x, like: _as_dtype(x / total, like.dtype), sums["tree"], tree)
        report = report | {"excluded": sums["sent"] - sums["clients"]}
        lowest = jax.tree.map(jnp.negative, negated)
        return Reduced(mean, sums["weight"], sums["clients"], report, lowest, highest), states, link

    def _count(
        self, direction: str, name: str, codec: Codec, tree: Any, message: Any, count: Array, measured: dict[str, Ratio]
    ) -> "Link":
        """The link with `count` more messages of this kind. A recorder notes the kind and leaves the link as it is, so
        that a round can be traced with the link in a loop before its channels are known."""
        channel = Channel(direction, name, trees.num_bytes(message), trees.float32_bytes(tree))
        prefix = f"{direction}link_" if name == MODEL else f"{direction}link_{name}_"
        measured = {prefix + what: ratio for what, ratio in measured.items()}
        if self.recorder:
            self.recorder.note(Discovery(channel, trees.shapes(tree), codec, trees.shapes(measured)))
            return self
        added = {what: trees.add(self.measured[what], ratio) for what, ratio in measured.items()}
        return self.replace(
            sent={**self.sent, channel: self.sent[channel] + count}, measured={**self.measured, **added}
        )


def _if(condition: Array, tree: PyTree) -> PyTree:
    """`tree` where the condition holds, zeros elsewhere."""
    return trees.select(condition, tree, trees.zeros_like(tree))


def _as_dtype(mean: Array, dtype: Any) -> Array:
    """A mean in the dtype of what was averaged; integers to the nearest."""
    return mean.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else jnp.round(mean).astype(dtype)
