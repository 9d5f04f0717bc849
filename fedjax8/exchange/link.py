"""The link of a round to its clients: broadcast, map, reduce, with codecs and an exact byte count around them.

A `Link` is a pytree that goes in and comes out of every call, so that it can also be carried through a loop:

    received, link = link.broadcast(key, tree, cohort)
    reduced, states, link = link.map_clients(client, received, cohort, key)

Sizes are static and live in the *structure* of `link.sent` (its keys are `Channel`s with the bytes of one message,
read off the encoded message's shapes); how many messages went is counted on the device. Bytes are their product, taken
on the host in Python integers, and therefore exact even where the number of exchanges depends on data.

Codecs' measures of their own work (clipped values, quantization error) are summed in `link.measured`, over the usable
messages of both directions, under names such as `uplink_clipped_fraction`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import trees
from fedjax8.attacks.none import none as nobody
from fedjax8.exchange import attacking, mixing, parted, relays, versions
from fedjax8.exchange.arriving import Arrived, client_keys, everything, summable, zero_unless
from fedjax8.exchange.attacking import as_contribution, change_of
from fedjax8.exchange.clock import Clock, Timeless
from fedjax8.exchange.discovery import Discovery, Recorder, coded
from fedjax8.exchange.facts import RoundFacts
from fedjax8.exchange.left_out import cells
from fedjax8.exchange.sections import channels_of, num_bytes, sizes_of
from fedjax8.types import (
    MODEL,
    Aggregator,
    Array,
    Attack,
    Channel,
    ClientFunction,
    ClientRows,
    Codec,
    Cohort,
    Collected,
    Contribution,
    Executor,
    Graph,
    Key,
    Mixed,
    Partial,
    Pool,
    PyTree,
    Ratio,
    Receive,
    Reduced,
)

DOWN, UP, PEER, EDGE = "down", "up", "peer", "edge"


@struct.dataclass
class RoundLink(RoundFacts):
    """The `types.Link` of a round; see the module. The program of a call makes it, algorithms call its methods."""

    pool: Pool
    down_states: dict[str, PyTree]
    sent: dict[Channel, Array]
    measured: dict[str, Ratio]
    left_out: Array
    """uint32 `[CELLS, 3]`: the clients excluded so far; see `left_out.py`."""
    round_number: Array
    uplink: Codec = struct.field(pytree_node=False)
    downlink: Codec = struct.field(pytree_node=False)
    executor: Executor = struct.field(pytree_node=False)
    num_clients: int = struct.field(pytree_node=False)
    usual: int | None = struct.field(pytree_node=False, default=None)
    """`cohort_size` where a round may have other numbers of clients, or waits for some only."""
    recorder: Recorder | None = struct.field(pytree_node=False, default=None)
    attack: Attack = struct.field(pytree_node=False, default=nobody())
    clock: Clock | Timeless = Timeless()
    """Time of the round's clients."""
    started: PyTree = ()
    """int32: clients that receive the present model; `()` where all of the cohort do."""

    def replace(self, **changes: Any) -> "RoundLink":
        """The link with other settings: `uplink`, `downlink`, `attack`."""
        return dataclasses.replace(self, **changes)

    def broadcast(
        self,
        key: Key,
        tree: PyTree,
        cohort: Cohort,
        name: str = MODEL,
        codec: Codec | None = None,
        background: bool = False,
        present: Mapping[str, Array] | None = None,
    ) -> tuple[PyTree, "RoundLink"]:
        """One message to every client of the cohort: (the tree as they decode it, link).

        Encoded once, with one random draw, counted once per client that receives it. `codec` replaces the downlink's.
        With `background` clients go on until `wait`. `present`: which of n parts a client receives, bool `[C, n]`, of
        entries that are tuples; see `parted`.
        """
        codec, to = self.downlink if codec is None else codec, present or {}
        every, cohort = {part: jnp.ones(x.shape[1], bool) for part, x in to.items()}, self.clock.receivers(cohort)
        codec, encoded = parted.divided(codec, tree, every)
        state = codec.init(encoded) if self.recorder else self.down_states[name]
        with jax.named_scope("download"):
            message, after, decoded = coded(codec, key, state, encoded, name)
            receivers = self.count(cohort.valid) if isinstance(self.started, tuple) else self.started
            pieces = parted.received(message, to)
            kinds = channels_of(DOWN, name, tree, sizes_of(pieces))
            there = {channel: pieces[part][1] for part, channel in kinds.items()}
            counts = {c: self.count(cohort.valid & (x > 0)) if to else receivers * x for c, x in there.items()}
            link = self.counted(codec, encoded, counts, codec.measure(encoded, decoded))
            clock = self.clock.received(cohort, {kinds[part]: piece for part, piece in pieces.items()}, background)
        states = self.down_states if self.recorder else {**self.down_states, name: after}
        decoded = parted.whole(decoded, every, {})[0]
        if versions.RING in states and name == MODEL:
            states |= {versions.RING: versions.push(states[versions.RING], self.round_number, decoded)}
        return decoded, dataclasses.replace(link, clock=clock, down_states=states)

    def relay(
        self, key: Key, tree: PyTree, name: str, sent: Array, codec: Codec | None = None, to: Cohort | None = None
    ) -> tuple[PyTree, "RoundLink"]:
        """(K trees as their receivers decode them, link): a message of each of K trees, leaves `[K, ...]`, sent int32
        `[K]` times between edge servers and the server, or `to` the clients whose memory says their `group`; see
        `relays`."""
        return relays.relay(self, key, tree, name, sent, self.downlink if codec is None else codec, to)

    def map_clients(
        self,
        client: ClientFunction,
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = MODEL,
        codec: Codec | None = None,
        watch: Callable[[PyTree], PyTree] = lambda decoded: (),
        aggregate: Aggregator | None = None,
        origin: Mapping[str, PyTree] | None = None,
        steps: Array | int | None = None,
        background: bool = False,
    ) -> tuple[Reduced, PyTree, "RoundLink"]:
        """(Reduced, new client states, link): runs `client(received, state, rows, key)` for every client and aggregates
        their contributions.

        A contribution is encoded on the client, decoded to float32 on the server and added as it comes. A client is
        excluded, counted (`report["excluded"]`) and named in the log, and keeps its old state, if its contribution has
        a norm beyond `trees.LARGEST`, before encoding or after, if its state (also its codec's) or report is not
        finite, or if its weight is not a number from 0 up, or so large that its share of the sum would be beyond
        `trees.LARGEST_SUM`. So all sums are finite. Values in a report count as `LARGEST_SUM` at most.

        `codec` replaces the uplink codec on this channel. `watch` picks the values of a decoded contribution whose
        smallest and largest over clients are wanted too. `aggregate` replaces the mean by another rule; memory then
        grows with the cohort unless it only admits. Such a rule, and an attack, work on changes: `origin` is the value
        each entry started from, by name; its change is entry - origin. Entries that it does not name are changes
        already; None: origins are unknown, and attacks on messages are refused. The mean of a part that nobody sent
        (`Contribution.present`) is its origin; see `parted`.

        `steps` is the number of local steps that a client takes for this exchange, which costs it time: None for those
        of its batch plan, 0 where it sends values that it has. A late client sends nothing and keeps its old state.
        With `background` clients go on meanwhile.
        """
        rule = Aggregator() if aggregate is None else aggregate
        start = origin or {}

        def take(decoded: PyTree, weight: Array, present: parted.PartsPresent) -> tuple[Partial, PyTree]:
            seen = watch(decoded)
            extremes = jax.tree.map(lambda x: jnp.where(weight > 0, x, -jnp.inf), (seen, trees.scale(-1.0, seen)))
            if rule.combine is not None:
                parted.check_whole(present)
                return Partial((), extremes), (zero_unless(weight > 0, change_of(decoded, start)), weight)
            return Partial(parted.weighted(decoded, weight, present), extremes), ()

        look = rule.admit or everything

        def admit(decoded: PyTree) -> tuple[PyTree, Array, dict[str, Array]]:
            change, admitted, sums = look(change_of(decoded, start))
            return as_contribution(change, start, decoded), admitted, sums

        asked, admission = (client, received, cohort, key, name, codec), admit if rule.admit else everything
        arrived, kept, states, link = self._exchange(*asked, take, admission, origin, steps, background)
        summed, (highest, negated) = arrived.taken
        measures, shares = {}, {}
        if rule.combine is None:
            mean, weight, shares = parted.mean_of(summed, start, arrived.tree)
        else:
            changes, weights = self.executor.gather(kept)
            with jax.named_scope("aggregate"):
                change, measures = rule.combine(changes, weights)
            mean, weight = as_contribution(change, start, arrived.tree), jnp.sum(weights)
        seen = arrived.report | measures, jax.tree.map(jnp.negative, negated), highest
        return Reduced(mean, weight, arrived.clients, *seen, shares), states, link

    def collect(
        self,
        client: ClientFunction,
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str = MODEL,
        codec: Codec | None = None,
        steps: Array | int | None = None,
        background: bool = False,
        direction: str = UP,
    ) -> tuple[Collected, PyTree, "RoundLink"]:
        """(Collected, new client states, link): as `map_clients`, with the contributions one by one; every shard then
        holds those of the whole cohort. With `direction` `peer` each client passes its own on to another one, which
        takes the time of its own uplink."""

        asked = client, received, cohort, key, name, codec, parted.kept_whole, everything
        arrived, kept, states, link = self._exchange(*asked, None, steps, background, direction)
        contributions, weights = self.executor.gather(kept)
        return Collected(contributions, weights, arrived.clients, arrived.report), states, link

    def mix(
        self,
        client: ClientFunction,
        receive: Receive,
        shared: PyTree,
        cohort: Cohort,
        key: Key,
        graph: Graph,
        name: str = MODEL,
        codec: Codec | None = None,
        steps: Array | int | None = None,
    ) -> tuple[Mixed, PyTree, "RoundLink"]:
        """(Mixed, new client states, link): runs `client(shared, state, rows, key)` for every worker, sends its tree to
        all who hear it, and runs `receive(state, own, mean)`; see `mixing`.

        A tree is encoded once, and counted for every worker that hears it. A worker that drops out or is excluded (as
        in `map_clients`) is not heard and keeps its old state; one whose memory is beyond `trees.LARGEST` after
        `receive` keeps that from before it. Weights of contributions say whether they are sent, above 0, or not.
        """

        asked = client, shared, cohort, key, name, codec, parted.kept_whole, everything
        arrived, (own, weight), states, link = self._exchange(*asked, None, steps, False, PEER, graph)
        heard = weight > 0
        with jax.named_scope("mix"):
            mean = mixing.mixed(self.executor, graph, cohort.ids, own, heard)
            memory, lost = mixing.received(receive, states["algorithm"], own, mean, heard)
            who = self.executor.total(jnp.sum(jax.vmap(cells)(cohort.ids, lost), axis=0, dtype=jnp.uint32))
        report = arrived.report | {"excluded": arrived.report["excluded"] + self.count(lost)}
        link = dataclasses.replace(link, left_out=link.left_out + who)
        return Mixed(arrived.clients, report), states | {"algorithm": memory}, link

    def on_clients(
        self,
        f: Callable[[PyTree, PyTree, ClientRows, Key], tuple[Partial, PyTree]],
        shared: PyTree,
        cohort: Cohort,
        key: Key,
        steps: Array | int | None = 0,
    ) -> tuple[Partial, Array, PyTree, "RoundLink"]:
        """(totals, int32 clients left out, new client states, link): runs `f(shared, state, rows, key) -> (Partial, new
        state)` for every client, without a message.

        For work that clients do on their own, and for values that only a simulator knows, such as the mean of models
        that nobody sends. `key` gives clients the keys that it gives them in `map_clients`. A client whose state is not
        finite or whose sums are beyond `trees.LARGEST_SUM` is left out, named in the log, and keeps its old state.
        `steps` are the local steps that it takes, which cost it time: None for those of its batch plan.
        """

        def one(shared: PyTree, per_client: Cohort) -> tuple[Partial, PyTree]:
            shared, pool, key = shared
            train_key, _ = client_keys(key, per_client.ids)
            rows, before = self._rows_of(pool, per_client), per_client.states
            partial, state = f(shared, before["algorithm"], rows, train_key)
            usable = per_client.reached & trees.summable(partial.sum) & trees.all_finite(state)
            out = per_client.reached & ~usable
            sums = zero_unless(usable, partial.sum), out.astype(jnp.int32), cells(per_client.ids, out)
            extremes = jax.tree.map(lambda x: jnp.where(usable, x, -jnp.inf), partial.max)
            return Partial(sums, extremes), trees.select(usable, before | {"algorithm": state}, before)

        (totals, extremes), states = self.executor.map_reduce(one, (shared, self.pool, key), cohort)
        sums, count, who = totals
        link = dataclasses.replace(self, left_out=self.left_out + who, clock=self.clock.worked(cohort, steps))
        return Partial(sums, extremes), count, states, link

    def _exchange(
        self,
        client: ClientFunction,
        received: PyTree,
        cohort: Cohort,
        key: Key,
        name: str,
        codec: Codec | None,
        take: Callable[[PyTree, Array, parted.PartsPresent], tuple[Partial, PyTree]],
        admit: Callable[[PyTree], tuple[PyTree, Array, dict[str, Array]]],
        origin: Mapping[str, PyTree] | None,
        steps: Array | int | None,
        background: bool,
        direction: str = UP,
        graph: Graph | None = None,
    ) -> tuple[Arrived, PyTree, PyTree, "RoundLink"]:
        """(Arrived, kept `[c, ...]`, new client states, link): the common part of `map_clients`, `collect` and `mix`.

        `take(decoded, weight, present)` gives the addends of an admitted contribution, and the values to keep of each.
        """
        usual, kinds, asked = self.uplink if codec is None else codec, [], cohort
        most_bytes = sum(channel.message_bytes for channel in self.sent if channel[:2] == (direction, name))
        cohort, sending, clock = self.clock.trained(cohort, steps, most_bytes)
        ring = versions.RING in self.down_states

        def trained(received: PyTree, pool: Pool, key: Key, per_client: Cohort) -> Contribution:
            rows = self._rows_of(pool, per_client)
            return client(received, per_client.states["algorithm"], rows, client_keys(key, per_client.ids)[0])

        exchange = attacking.Exchange(self.attack, self.executor, self.pool, self.num_clients)
        attacked = attacking.attacked(exchange, trained, received, cohort, key, origin)

        def one(shared: PyTree, planned: tuple[Cohort, Any, PyTree]) -> tuple[Partial, PyTree]:
            (received, pool, key), (per_client, sending, copies) = shared, planned
            _, encode_key = client_keys(key, per_client.ids)
            with jax.named_scope("train"):
                out = attacked(trained(received, pool, key, per_client), per_client, key)
            own = per_client.states["uplink"]
            with jax.named_scope("encode"):
                by, given = parted.divided(usual, out.tree, out.present)
                before = by.init(given) if self.recorder else own[name]
                message, codec_state, arrived = coded(by, encode_key, before, given, name)
            pieces = trees.pieces(message)
            kinds.append((trees.shapes(out.tree), by, trees.shapes(given), sizes_of(pieces)))
            decoded, parts_sent = parted.whole(arrived, out.present, origin or {})
            present = {part: there for part, (_, there) in pieces.items()}
            reached = per_client.reached & clock.in_time(sending, num_bytes(pieces))
            # The contribution is checked before it is encoded too: an 8-bit format saturates infinities.
            admitted, accepted, seen = admit(decoded)
            norm = trees.norm(out.tree, decoded, admitted)
            stale = reached & (per_client.factor <= 0) if ring else jnp.array(False)
            usable = reached & trees.all_finite((out.state, codec_state, out.report)) & accepted & ~stale
            usable &= (norm <= trees.LARGEST) & (out.weight >= 0)
            usable &= out.weight * jnp.maximum(norm, 1.0) <= trees.LARGEST_SUM
            partial, kept = take(admitted, jnp.where(usable, out.weight, 0.0), parts_sent)
            sums = {
                "taken": partial.sum,
                "clients": usable.astype(jnp.int32),
                "stale": stale.astype(jnp.int32) if ring else (),
                "left_out": cells(per_client.ids, reached & ~usable & ~stale),
                "heard": reached.astype(jnp.int32) if graph else (),
                "sent": {part: reached * there * (copies if graph else 1) for part, there in present.items()},
                "report": zero_unless(usable, summable((out.report | seen, by.measure(given, arrived)))),
            }
            new = {"algorithm": out.state, "uplink": own if self.recorder else {**own, name: codec_state}}
            states = trees.select(usable, new, per_client.states)
            return Partial(sums, partial.max), (kept, states, clock.kept(present, usable))

        with jax.named_scope("reduce"):
            shared = received, self.pool, key
            copies = mixing.out_degrees(graph, cohort.ids) if graph else ()
            totals, (kept, states, messages) = self.executor.map_reduce(one, shared, (cohort, sending, copies))
        (tree, by, encoded, sizes), sums = kinds[0], totals.sum
        report, measured = sums["report"]
        channels = channels_of(direction, name, tree, sizes)
        link = self.counted(by, encoded, {channels[part]: count for part, count in sums["sent"].items()}, measured)
        of_channel = {channels[part]: size for part, size in sizes.items()}
        facts = sending, of_channel, messages
        clock = clock.mixed(cohort, *facts, graph) if graph else clock.sent(asked, *facts, background)
        link = dataclasses.replace(link, left_out=self.left_out + sums["left_out"], clock=clock)
        came = (sums["heard"] if graph else sums["sent"][trees.ALWAYS]) - (sums["stale"] if ring else 0)
        report |= {"excluded": came - sums["clients"]}
        return Arrived(tree, (sums["taken"], totals.max), sums["clients"], report), kept, states, link

    def _rows_of(self, pool: Pool, per_client: Cohort) -> ClientRows:
        """A client's rows, poisoned where it attacks, with the older model that it started from."""
        change = attacking.batch_change(self.attack, per_client.ids, self.num_clients)
        rows, ring = ClientRows(pool, per_client.start, per_client.size, change), self.down_states.get(versions.RING)
        if ring is None:
            return rows
        received = versions.pick(ring, self.round_number, per_client.age)
        return rows._replace(received=received, factor=per_client.factor)

    def counted(
        self,
        codec: Codec,
        tree: PyTree,
        counts: dict[Channel, Array],
        measured: dict[str, Ratio],
        copies: int = 0,
    ) -> "RoundLink":
        """The link with so many more messages of one kind, section by section.

        A recorder notes the kind and leaves the link as it is, so that a round can be traced with the link in a loop
        before its channels are known.
        """
        direction, name = next(iter(counts))[:2]
        prefix = (direction if direction in (PEER, EDGE) else f"{direction}link") + (
            "_" if name == MODEL else f"_{name}_"
        )
        measured = {prefix + what: ratio for what, ratio in measured.items()}
        if self.recorder:
            for channel in counts:
                self.recorder.note(Discovery(channel, trees.shapes(tree), codec, trees.shapes(measured), copies))
            return self
        sent = {channel: self.sent[channel] + count for channel, count in counts.items()}
        added = {what: trees.add(self.measured[what], ratio) for what, ratio in measured.items()}
        return dataclasses.replace(self, sent={**self.sent, **sent}, measured={**self.measured, **added})
