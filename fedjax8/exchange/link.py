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

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import trees
from fedjax8.attacks.none import none as nobody
from fedjax8.dropouts import Speeds
from fedjax8.exchange import attacking
from fedjax8.exchange.attacking import as_contribution, change_of
from fedjax8.exchange.clock import Clock
from fedjax8.exchange.discovery import Discovery, Recorder
from fedjax8.exchange.left_out import cells
from fedjax8.types import (
    MODEL,
    Aggregator,
    Array,
    Attack,
    Channel,
    ClientRows,
    Codec,
    Cohort,
    Collected,
    Contribution,
    Executor,
    Key,
    Partial,
    Pool,
    PyTree,
    Ratio,
    Reduced,
)

DOWN, UP = "down", "up"


@struct.dataclass
class RoundLink:
    """The `types.Link` of a round; see the module. The program of a call makes it, algorithms call its methods."""

    pool: Pool
    down_states: dict[str, PyTree]
    sent: dict[Channel, Array]
    measured: dict[str, Ratio]
    left_out: Array
    """uint32 `[CELLS, 3]`: which clients were; see `left_out.py`."""
    round_number: Array
    uplink: Codec = struct.field(pytree_node=False)
    downlink: Codec = struct.field(pytree_node=False)
    executor: Executor = struct.field(pytree_node=False)
    num_clients: int = struct.field(pytree_node=False)
    usual: int | None = struct.field(pytree_node=False, default=None)
    """`cohort_size` where a round may have other numbers of clients, or waits for some only."""
    recorder: Recorder | None = struct.field(pytree_node=False, default=None)
    attack: Attack = struct.field(pytree_node=False, default=nobody())
    clock: Clock | None = None
    """Of this round, where clients can be late."""

    def timed(self, speeds: Speeds, steps: Callable[[Array], Array], deadline: float) -> "RoundLink":
        """The link of a round in which clients take time and are late after `deadline` seconds; see `clock`."""
        return dataclasses.replace(self, clock=Clock.begin(speeds, steps, deadline))

    @property
    def late(self) -> Array:
        """bool `[C]`: which clients were late so far. ValueError unless the link is `timed`."""
        if self.clock is None:
            raise ValueError("only a timed link knows who is late; call link.timed first")
        return self.clock.late

    def replace(self, **changes: Any) -> "RoundLink":
        """The link with other settings: `uplink`, `downlink`, `attack`."""
        return dataclasses.replace(self, **changes)

    def broadcast(
        self, key: Key, tree: PyTree, cohort: Cohort, name: str = MODEL, codec: Codec | None = None
    ) -> tuple[PyTree, "RoundLink"]:
        """One message to every client of the cohort: (the tree as they decode it, link).

        It is encoded once, with one random draw, and counted once per client that receives it. `codec` stands in for
        the downlink codec on this channel.
        """
        codec = self.downlink if codec is None else codec
        cohort = self.clock.receivers(cohort) if self.clock else cohort
        state = codec.init(tree) if self.recorder else self.down_states[name]
        with jax.named_scope("download"):
            message, after = codec.encode(key, state, tree)
            decoded = codec.decode(state, message)
            receivers = self.count(cohort.valid)
            pieces = trees.pieces(message)
            counts = {part: receivers * present for part, (_, present) in pieces.items()}
            link = self._count(DOWN, name, codec, tree, _sizes(pieces), counts, codec.measure(tree, decoded))
            if self.clock:
                link = dataclasses.replace(link, clock=self.clock.received(cohort, _num_bytes(pieces)))
        if not self.recorder:
            link = dataclasses.replace(link, down_states={**self.down_states, name: after})
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
        aggregate: Aggregator | None = None,
        origin: Mapping[str, PyTree] | None = None,
        steps: Array | int | None = None,
    ) -> tuple[Reduced, PyTree, "RoundLink"]:
        """Runs `client(received, state, rows, key)` for every client and reduces what they send.

        A contribution is encoded on the client, decoded to float32 on the server and added as it comes. A client is
        excluded, counted (`report["excluded"]`) and named, and keeps its old state, whose contribution has a norm
        beyond `trees.LARGEST`, before encoding or after, whose state (also its codec's) or report is not finite, or
        whose weight is not a number from 0 up, or so large that its share of the sum would be beyond
        `trees.LARGEST_SUM`. So all sums are finite. Values in a report count as `LARGEST_SUM` at most. `codec` stands
        in for the uplink codec on this channel; `watch` names the values in a decoded contribution whose smallest and
        largest over clients are wanted too. Returns (Reduced, new client states, link).

        `aggregate` puts another rule in the place of the mean; memory then grows with the cohort unless it only admits.
        Such a rule, and an attack, work on changes: `origin` says, by name, what parts of a contribution are above.
        Parts that it does not name are changes already; None: nothing is known, and attackers cannot be had.

        `steps` says how many local steps a client takes for this exchange, which costs it time: None for those of its
        batch plan, 0 where it sends what it has. A client that is late sends nothing and keeps its old state.
        """
        rule = Aggregator() if aggregate is None else aggregate
        start = origin or {}

        def take(decoded: PyTree, weight: Array) -> tuple[Partial, PyTree]:
            seen = watch(decoded)
            extremes = jax.tree.map(lambda x: jnp.where(weight > 0, x, -jnp.inf), (seen, trees.scale(-1.0, seen)))
            if rule.combine is not None:
                return Partial((), extremes), (_if(weight > 0, change_of(decoded, start)), weight)
            weighted = jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0.0), decoded)
            return Partial((weighted, weight), extremes), ()

        look = rule.admit or _everything

        def admit(decoded: PyTree) -> tuple[PyTree, Array, dict[str, Array]]:
            change, admitted, sums = look(change_of(decoded, start))
            return as_contribution(change, start, decoded), admitted, sums

        arrived, kept, states, link = self._exchange(
            client, received, cohort, key, name, codec, take, admit if rule.admit else _everything, origin, steps
        )
        summed, (highest, negated) = arrived.taken
        if rule.combine is None:
            total, weight = summed
            divisor, told = jnp.where(weight > 0, weight, 1.0), {}
            mean = jax.tree.map(lambda x, like: trees.as_dtype(x / divisor, like.dtype), total, arrived.tree)
        else:
            changes, weights = self.executor.gather(kept)
            with jax.named_scope("aggregate"):
                change, told = rule.combine(changes, weights)
            mean, weight = as_contribution(change, start, arrived.tree), jnp.sum(weights)
        lowest = jax.tree.map(jnp.negative, negated)
        return Reduced(mean, weight, arrived.clients, arrived.report | told, lowest, highest), states, link

    def collect(
        self,
        client: Callable[[PyTree, PyTree, ClientRows, Key], Contribution],
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = MODEL,
        codec: Codec | None = None,
        steps: Array | int | None = None,
    ) -> tuple[Collected, PyTree, "RoundLink"]:
        """As `map_clients`, for servers that need the contributions one by one: every shard then holds those of the
        whole cohort. Returns (Collected, new client states, link)."""

        def take(decoded: PyTree, weight: Array) -> tuple[Partial, PyTree]:
            return Partial(()), (_if(weight > 0, decoded), weight)

        arrived, kept, states, link = self._exchange(
            client, received, cohort, key, name, codec, take, _everything, None, steps
        )
        contributions, weights = self.executor.gather(kept)
        return Collected(contributions, weights, arrived.clients, arrived.report), states, link

    def on_clients(
        self,
        f: Callable[[PyTree, PyTree, ClientRows, Key], tuple[Partial, PyTree]],
        shared: PyTree,
        cohort: Cohort,
        key: Key,
    ) -> tuple[Partial, Array, PyTree, "RoundLink"]:
        """Runs `f(shared, state, rows, key) -> (Partial, new state)` for every client, without a message.

        It is for what clients do on their own, and for what only a simulator can know, such as the mean of models that
        nobody sends. `key` gives clients the keys that it gives them in `map_clients`. A client whose state is not
        finite or whose sums are beyond `trees.LARGEST_SUM` is left out, named, and keeps its old state. Returns
        (totals, int32 clients left out, new client states, link).
        """

        def one(shared, per_client):
            shared, pool, key = shared
            train_key, _ = _client_keys(key, per_client.ids)
            rows, before = self._rows_of(pool, per_client), per_client.states
            partial, state = f(shared, before["algorithm"], rows, train_key)
            usable = per_client.reached & trees.summable(partial.sum) & trees.all_finite(state)
            out = per_client.reached & ~usable
            sums = _if(usable, partial.sum), out.astype(jnp.int32), cells(per_client.ids, out)
            extremes = jax.tree.map(lambda x: jnp.where(usable, x, -jnp.inf), partial.max)
            return Partial(sums, extremes), trees.select(usable, before | {"algorithm": state}, before)

        (totals, extremes), states = self.executor.map_reduce(one, (shared, self.pool, key), cohort)
        sums, count, who = totals
        return Partial(sums, extremes), count, states, dataclasses.replace(self, left_out=self.left_out + who)

    @property
    def varies(self) -> bool:
        """Whether rounds differ in their numbers of clients, or wait for some of the cohort only."""
        return self.usual is not None

    def expected(self, cohort: Cohort) -> Array:
        """float32: of how many clients a round has the messages in expectation, before any is lost on the way."""
        return jnp.float32(self.usual) if self.usual is not None else self.count(cohort.valid).astype(jnp.float32)

    def count(self, mask: Array) -> Array:
        """int32: of how many clients of the whole cohort the mask bool `[C]` is true."""
        return self.executor.total(jnp.sum(mask, dtype=jnp.int32))

    def _exchange(
        self,
        client: Callable,
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str,
        codec: Codec | None,
        take: Callable[[PyTree, Array], tuple[Partial, PyTree]],
        admit: Callable[[PyTree], tuple[PyTree, Array, dict[str, Array]]],
        origin: Mapping[str, PyTree] | None,
        steps: Array | int | None,
    ) -> tuple["Arrived", PyTree, PyTree, "RoundLink"]:
        """What `map_clients` and `collect` share: `take(decoded, weight)` says what of a contribution is reduced, and
        what is kept of each, after `admit`. Returns (Arrived, kept `[c, ...]`, new client states, link)."""
        codec, kinds, sending = self.uplink if codec is None else codec, [], None
        asked = cohort
        if self.clock:
            cohort, sending = self.clock.trained(cohort, steps)

        def trained(received, pool, key, per_client) -> Contribution:
            rows = self._rows_of(pool, per_client)
            return client(received, per_client.states["algorithm"], rows, _client_keys(key, per_client.ids)[0])

        attacked = attacking.attacked(self, trained, received, cohort, key, origin)

        def one(shared, timed):
            (received, pool, key), (per_client, sending) = shared, timed
            _, encode_key = _client_keys(key, per_client.ids)
            with jax.named_scope("train"):
                out = attacked(trained(received, pool, key, per_client), per_client, key)
            own = per_client.states["uplink"]
            with jax.named_scope("encode"):
                before = codec.init(out.tree) if self.recorder else own[name]
                message, codec_state = codec.encode(encode_key, before, out.tree)
                decoded = codec.decode(before, message)
            pieces = trees.pieces(message)
            kinds.append((trees.shapes(out.tree), _sizes(pieces)))
            reached, arrived = per_client.reached, None
            last: PyTree = ()
            if self.clock:
                arrived = sending.ready + _num_bytes(pieces) / sending.bandwidth
                reached &= arrived <= self.clock.deadline
                last = jnp.where(reached, arrived, -jnp.inf)
            # What is sent is looked at before it is encoded too: an 8-bit format saturates infinities.
            admitted, accepted, seen = admit(decoded)
            norm = trees.norm(out.tree, decoded, admitted)
            usable = reached & trees.all_finite((out.state, codec_state, out.report)) & accepted
            usable &= (norm <= trees.LARGEST) & (out.weight >= 0)
            usable &= out.weight * jnp.maximum(norm, 1.0) <= trees.LARGEST_SUM
            partial, kept = take(admitted, jnp.where(usable, out.weight, 0.0))
            sums = {
                "taken": partial.sum,
                "clients": usable.astype(jnp.int32),
                "left_out": cells(per_client.ids, reached & ~usable),
                "sent": {part: reached * present for part, (_, present) in pieces.items()},
                "report": _if(usable, _summable((out.report | seen, codec.measure(out.tree, decoded)))),
            }
            new = {"algorithm": out.state, "uplink": own if self.recorder else {**own, name: codec_state}}
            return Partial(sums, (partial.max, last)), (kept, trees.select(usable, new, per_client.states), arrived)

        with jax.named_scope("reduce"):
            shared = received, self.pool, key
            totals, (kept, states, arrived) = self.executor.map_reduce(one, shared, (cohort, sending))
        (tree, sizes), sums, (extremes, last) = kinds[0], totals.sum, totals.max
        report, measured = sums["report"]
        link = self._count(UP, name, codec, tree, sizes, sums["sent"], measured)
        clock = self.clock.sent(asked, arrived, last) if self.clock else None
        link = dataclasses.replace(link, left_out=self.left_out + sums["left_out"], clock=clock)
        report = report | {"excluded": sums["sent"][trees.ALWAYS] - sums["clients"]}
        return Arrived(tree, (sums["taken"], extremes), sums["clients"], report), kept, states, link

    def _rows_of(self, pool: Pool, per_client: Cohort) -> ClientRows:
        """A client's rows, as it trains on them."""
        change = attacking.batch_change(self.attack, per_client.ids, self.num_clients)
        return ClientRows(pool, per_client.start, per_client.size, change)

    def _count(
        self,
        direction: str,
        name: str,
        codec: Codec,
        tree: PyTree,
        sizes: dict[str, int],
        counts: dict[str, Array],
        measured: dict[str, Ratio],
    ) -> "RoundLink":
        """The link with so many more messages of this kind, whose parts have these `sizes`.

        A recorder notes the kind and leaves the link as it is, so that a round can be traced with the link in a loop
        before its channels are known.
        """
        unencoded = trees.float32_bytes(tree)
        channels = {
            part: Channel(direction, name, size, 0 if part else unencoded, part) for part, size in sizes.items()
        }
        prefix = f"{direction}link_" if name == MODEL else f"{direction}link_{name}_"
        measured = {prefix + what: ratio for what, ratio in measured.items()}
        if self.recorder:
            for channel in channels.values():
                self.recorder.note(Discovery(channel, trees.shapes(tree), codec, trees.shapes(measured)))
            return self
        sent = {channel: self.sent[channel] + counts[part] for part, channel in channels.items()}
        added = {what: trees.add(self.measured[what], ratio) for what, ratio in measured.items()}
        return dataclasses.replace(self, sent={**self.sent, **sent}, measured={**self.measured, **added})


class Arrived(NamedTuple):
    """What came of an exchange, however it was taken."""

    tree: PyTree
    """Shapes of one contribution."""
    taken: tuple[PyTree, PyTree]
    """Sum and maximum of what `take` gave."""
    clients: Array
    report: dict[str, Array]


def _client_keys(key: Key, client: Array) -> tuple[Key, Key]:
    """Of a client's training, and of the encoding of what it sends."""
    train, encode = jax.random.split(jax.random.fold_in(key, client))
    return train, encode


def _everything(decoded: PyTree) -> tuple[PyTree, Array, dict[str, Array]]:
    """Admits what was decoded as it is."""
    return decoded, jnp.array(True), {}


def _sizes(pieces: dict[str, tuple[int, Array]]) -> dict[str, int]:
    return {part: size for part, (size, _) in pieces.items()}


def _num_bytes(pieces: dict[str, tuple[int, Array]]) -> Array:
    """float32: bytes of what is sent of a message."""
    return sum((size * present.astype(jnp.float32) for size, present in pieces.values()), jnp.float32(0))


def _summable(report: PyTree) -> PyTree:
    """Numbers for the log, no further from 0 than their sum over clients can bear."""
    cut = lambda x: jnp.clip(x, -trees.LARGEST_SUM, trees.LARGEST_SUM) if jnp.issubdtype(x.dtype, jnp.floating) else x
    return jax.tree.map(lambda x: cut(jnp.asarray(x)), report)


def _if(condition: Array, tree: PyTree) -> PyTree:
    """`tree` where the condition holds, zeros elsewhere."""
    return trees.select(condition, tree, trees.zeros_like(tree))
