"""Simulated seconds of a round's clients, measured at its exchanges, and the stragglers among them.

    received:   t_i <- end of a transfer that starts at max(t_i, T) + latency_i
    trained:    t_i <- t_i + step_seconds_i * steps
    sent:       t_i <- end of a transfer that starts at t_i + latency_i
    late:       t_i > deadline;     T <- max of t_i over those who sent and are not late

t_i is the time of client i since the round began, T the time at which the server has every message that it waits for.
A transfer takes bytes / B_i at most; the server's own link, where it is limited, is shared (`transfers`). The server
knows who will be late and waits for the others only. Several messages of a client add up, alternatives do not: a client
is charged for the messages that it receives and sends itself. A late client's message counts nowhere, neither in the
aggregate nor in the bytes sent, and from then on the server sends it nothing in that round.

A message in the *background* takes its time beside the local steps that go on meanwhile: it moves T, and the client
waits for it where the round says so (`wait`), at the round's end at the latest.

The round takes max(T, t_i of those who are neither late nor dropped) seconds; if someone is late, it lasts until the
deadline.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8.exchange import mixing
from fedjax8.exchange.sections import SectionsSent, num_bytes
from fedjax8.exchange.transfers import transfers
from fedjax8.systems import ServerLink
from fedjax8.types import Array, Channel, Cohort, Executor, Graph, PyTree


class Sending(NamedTuple):
    """Start and speed of clients' uploads, float32 `[c]`."""

    ready: Array
    """Seconds from the start of the round to the first byte."""
    bandwidth: Array
    """Bytes a second."""
    in_time: Array
    """bool: whether the longest form of the message arrives before the deadline, where the server's link is shared."""


class Timing(NamedTuple):
    """The clock of a run: the facts that no round changes."""

    server: ServerLink
    steps: Callable[[Array], Array]
    """int32 sizes of clients to their local steps in a round, by the batch plan."""


class Elapsed(NamedTuple):
    """Time of a round, for the log."""

    seconds: Array
    """float32: simulated seconds of the round."""
    waiting: Array
    """float32: share of it that clients wait, of those who are neither late nor dropped."""
    peak_rate: Array
    """float32: largest simultaneous rate of the server's link, in bytes a second of either direction."""
    wasted: dict[Channel, Array]
    """int32: messages from and to clients without a part in the round's result."""


class Timeless:
    """The clock of a run without time: nobody is late, and nothing is measured."""

    def until(self, deadline: float) -> "Timeless":
        """Itself: a simulation refuses a deadline without a system model before it runs."""
        return self

    def is_late(self, cohort: Cohort) -> Array:
        """bool `[c]`: nobody."""
        return jnp.zeros_like(cohort.valid)

    def seconds(self, cohort: Cohort) -> Array:
        """float32 `[c]`: 0."""
        return jnp.zeros(cohort.valid.shape, jnp.float32)

    def seconds_left(self, cohort: Cohort) -> Array:
        """float32 `[c]`: infinite."""
        return jnp.full(cohort.valid.shape, jnp.inf, jnp.float32)

    def step_seconds(self, cohort: Cohort) -> Array:
        """float32 `[c]`: 0."""
        return jnp.zeros(cohort.valid.shape, jnp.float32)

    def receivers(self, cohort: Cohort) -> Cohort:
        """All of the cohort."""
        return cohort

    def received(self, cohort: Cohort, pieces: SectionsSent, background: bool) -> "Timeless":
        """Itself."""
        return self

    def trained(self, cohort: Cohort, steps: Array | int | None, most_bytes: int) -> tuple[Cohort, PyTree, "Timeless"]:
        """(the cohort, nothing, itself)."""
        return cohort, (), self

    def worked(self, cohort: Cohort, steps: Array | int | None) -> "Timeless":
        """Itself."""
        return self

    def in_time(self, sending: PyTree, size: Array) -> Array:
        """True."""
        return jnp.array(True)

    def kept(self, present: Mapping[str, Array], used: Array) -> PyTree:
        """Nothing."""
        return ()

    def sent(
        self, cohort: Cohort, sending: PyTree, sizes: Mapping[Channel, int], messages: PyTree, background: bool
    ) -> "Timeless":
        """Itself."""
        return self

    def mixed(
        self, cohort: Cohort, sending: PyTree, sizes: Mapping[Channel, int], messages: PyTree, graph: Graph
    ) -> "Timeless":
        """Itself."""
        return self

    def wait(self, cohort: Cohort) -> "Timeless":
        """Itself."""
        return self

    def elapsed_in(self, cohort: Cohort) -> tuple[()]:
        """Nothing."""
        return ()


jax.tree_util.register_pytree_node(Timeless, lambda clock: ((), None), lambda *_: Timeless())


@struct.dataclass
class Clock:
    """Elapsed seconds of this device's clients in one round."""

    speeds: Any
    """`systems.Speeds`, float32 `[c]` each."""
    elapsed: Array
    """float32 `[c]`: t_i."""
    busy: Array
    """float32 `[c]`: seconds of t_i in which the client receives, trains or sends."""
    due: Array
    """float32 `[c]`: when its last message in the background arrives."""
    late: Array
    """bool `[c]`: late in an exchange of this round."""
    gone: Array
    """bool `[c]`: late, or dropped."""
    wasted: Array
    """bool `[c]`: without a part in the result: gone, or excluded."""
    server: Array
    """float32: T."""
    peak: Array
    """float32: largest simultaneous rate so far."""
    messages: dict[Channel, Array]
    """int32 `[c]`: messages of each kind, from and to each client."""
    timing: Timing = struct.field(pytree_node=False)
    executor: Executor = struct.field(pytree_node=False)
    deadline: float = struct.field(pytree_node=False, default=math.inf)

    @staticmethod
    def begin(speeds: PyTree, timing: Timing, executor: Executor, channels: Mapping[Channel, Any]) -> "Clock":
        """The clock at the beginning of a round that may have messages of these kinds."""
        zeros = jnp.zeros(speeds.step_seconds.shape, jnp.float32)
        nobody, nothing = zeros > 0, jnp.float32(0)
        messages = {channel: zeros.astype(jnp.int32) for channel in channels}
        return Clock(speeds, zeros, zeros, zeros, nobody, nobody, nobody, nothing, nothing, messages, timing, executor)

    def until(self, deadline: float) -> "Clock":
        """The clock of a round with a deadline, in seconds from its start."""
        return dataclasses.replace(self, deadline=deadline)

    def is_late(self, cohort: Cohort) -> Array:
        """bool `[c]`: stragglers of the round so far."""
        return self.late

    def seconds(self, cohort: Cohort) -> Array:
        """float32 `[c]`: t_i."""
        return self.elapsed

    def seconds_left(self, cohort: Cohort) -> Array:
        """float32 `[c]`: deadline - t_i, infinite without a deadline."""
        return self.deadline - self.elapsed

    def step_seconds(self, cohort: Cohort) -> Array:
        """float32 `[c]`: seconds of a local step."""
        seconds: Array = self.speeds.step_seconds
        return seconds

    def receivers(self, cohort: Cohort) -> Cohort:
        """The cohort without its stragglers so far."""
        return cohort._replace(valid=cohort.valid & ~self.late)

    def received(self, cohort: Cohort, pieces: SectionsSent, background: bool) -> "Clock":
        """The clock after these clients have received a message."""
        begin = jnp.broadcast_to(self.server, self.elapsed.shape)
        begin = begin if background else jnp.maximum(self.elapsed, begin)
        start, size = begin + self.speeds.latency, jnp.full(begin.shape, num_bytes(pieces))
        capacity = self.timing.server.down_bandwidth
        bandwidth, there = self.speeds.down_bandwidth, cohort.valid
        ready, peak, _ = self._transferred(start, size, bandwidth, there, there, capacity)
        elapsed, busy, due = self.elapsed, self.busy, self.due
        if background:
            due = jnp.where(cohort.valid, jnp.maximum(due, ready), due)
        else:
            elapsed = jnp.where(cohort.valid, ready, elapsed)
            busy += jnp.where(cohort.valid, ready - begin, 0.0)
        return dataclasses.replace(
            self,
            elapsed=elapsed,
            busy=busy,
            due=due,
            peak=jnp.maximum(self.peak, peak),
            messages=self._with(pieces, cohort.valid),
        )

    def trained(self, cohort: Cohort, steps: Array | int | None, most_bytes: int) -> tuple[Cohort, Sending, "Clock"]:
        """(the cohort, its uploads of at most so many bytes, the clock) after `steps` local steps, None for the batch
        plan's.

        Clients that cannot be in time any more are not trained, which saves time.
        """
        clock = self.worked(cohort, steps)
        start, capacity = clock.elapsed + self.speeds.latency, self.timing.server.up_bandwidth
        in_time = start <= self.deadline
        if capacity < math.inf and self.deadline < math.inf:
            most = jnp.full(start.shape, jnp.float32(most_bytes))
            sends = cohort.reached & ~self.late
            bandwidth = self.speeds.up_bandwidth
            in_time = self._transferred(start, most, bandwidth, sends, sends, capacity)[0] <= self.deadline
        lost = self.late | ~in_time
        dropped = lost if isinstance(cohort.dropped, tuple) else cohort.dropped | lost
        left = cohort._replace(dropped=dropped, size=jnp.where(lost, 0, cohort.size))
        return left, Sending(start, self.speeds.up_bandwidth, in_time), clock

    def worked(self, cohort: Cohort, steps: Array | int | None) -> "Clock":
        """The clock after `steps` local steps of these clients, None for the batch plan's."""
        taken = self.timing.steps(cohort.size) if steps is None else jnp.where(cohort.size > 0, steps, 0)
        work = jnp.where(cohort.reached & ~self.late, self.speeds.step_seconds * taken, 0.0)
        return dataclasses.replace(self, elapsed=self.elapsed + work, busy=self.busy + work)

    def in_time(self, sending: Sending, size: Array) -> Array:
        """bool: whether one client's message of so many bytes arrives before the deadline."""
        if self.timing.server.up_bandwidth < math.inf:
            return sending.in_time
        return sending.ready + size / sending.bandwidth <= self.deadline

    def kept(self, present: Mapping[str, Array], used: Array) -> PyTree:
        """What `sent` wants to know of each client's message: which sections are sent, and whether it has a part in the
        result."""
        return [there for _, there in present.items()], used

    def sent(
        self, cohort: Cohort, sending: Sending, sizes: Mapping[Channel, int], messages: PyTree, background: bool
    ) -> "Clock":
        """The clock after the messages of these clients, with sections of these sizes; `messages` is what `kept` gave,
        stacked `[c]`."""
        present, used = messages
        pieces = {channel: (size, there) for (channel, size), there in zip(sizes.items(), present, strict=True)}
        size, server = num_bytes(pieces), all(channel.direction != "peer" for channel in sizes)
        capacity = self.timing.server.up_bandwidth if server else math.inf
        sends = cohort.reached & ~self.late
        late = sends & ~self.in_time(sending, size)
        waited = sends & ~late
        arrived, peak, last = self._transferred(sending.ready, size, sending.bandwidth, sends, waited, capacity)
        spent = jnp.where(sends, arrived - self.elapsed, 0.0)
        ahead = jnp.zeros_like(spent) if background else spent
        return dataclasses.replace(
            self,
            elapsed=self.elapsed + ahead,
            busy=self.busy + ahead,
            late=self.late | late,
            gone=self.gone | late | (cohort.valid & ~cohort.reached),
            wasted=self.wasted | (cohort.valid & ~used),
            server=jnp.maximum(self.server, last),
            peak=jnp.maximum(self.peak, peak) if server else self.peak,
            messages=self._with(pieces, waited),
        )

    def mixed(
        self, cohort: Cohort, sending: Sending, sizes: Mapping[Channel, int], messages: PyTree, graph: Graph
    ) -> "Clock":
        """The clock after the messages of these workers to all who hear them, as in `sent`; the server has no part in
        it. See `mixing.arrivals`."""
        present, used = messages
        copies = mixing.out_degrees(graph, cohort.ids)
        one = {channel: (size, there) for (channel, size), there in zip(sizes.items(), present, strict=True)}
        pieces = {channel: (size, there * copies) for channel, (size, there) in one.items()}
        sends, speeds = cohort.reached, self.speeds
        rates = speeds.up_bandwidth, speeds.down_bandwidth
        arrived, busy = mixing.arrivals(
            self.executor, graph, cohort.ids, (self.elapsed, speeds.latency, num_bytes(one), *rates, sends)
        )
        return dataclasses.replace(
            self,
            elapsed=jnp.where(sends, arrived, self.elapsed),
            busy=self.busy + jnp.where(sends, busy, 0.0),
            gone=self.gone | (cohort.valid & ~cohort.reached),
            wasted=self.wasted | (cohort.valid & ~used),
            messages=self._with(pieces, sends),
        )

    def wait(self, cohort: Cohort) -> "Clock":
        """The clock after these clients have their messages of the background."""
        ready = jnp.where(cohort.valid & ~self.late, jnp.maximum(self.elapsed, self.due), self.elapsed)
        return dataclasses.replace(self, elapsed=ready)

    def elapsed_in(self, cohort: Cohort) -> Elapsed:
        """Time and waste of the round, the same on every shard; `cohort` as it was asked."""
        asked, gone, wasted = cohort.valid, self.gone & cohort.valid, self.wasted & cohort.valid
        done = jnp.maximum(self.elapsed, self.due)  # a message in the background belongs to its round
        elapsed, busy, *flags = self._gathered(done, self.busy, asked, gone, self.late)
        asked, gone, late = (flag > 0 for flag in flags)
        there = asked & ~gone
        last = jnp.maximum(jnp.max(jnp.where(there, elapsed, 0.0), initial=0.0), self.server)
        last = jnp.where(last > 0, last, jnp.max(jnp.where(asked, elapsed, 0.0), initial=0.0))
        if self.deadline < math.inf:
            last = jnp.where(jnp.any(late & asked), self.deadline, last)
        whole = jnp.sum(there) * last
        used = jnp.sum(jnp.where(there, jnp.minimum(busy, last), 0.0))
        waiting = jnp.where(whole > 0, 1.0 - used / jnp.where(whole > 0, whole, 1.0), 0.0)
        lost = {channel: jnp.sum(jnp.where(wasted, count, 0)) for channel, count in self.messages.items()}
        return Elapsed(last, jnp.clip(waiting, 0.0, 1.0), self.peak, self.executor.total(lost))

    def _gathered(self, *of_clients: Array) -> list[Array]:
        """float32 `[S * c]` of all shards, of arrays `[c]`: one message between devices, not one for each array."""
        stacked = jnp.stack([x.astype(jnp.float32) for x in of_clients], axis=1)
        whole = self.executor.gather(stacked)
        return [whole[:, i] for i in range(len(of_clients))]

    def _with(self, pieces: SectionsSent, clients: Array) -> dict[Channel, Array]:
        """The messages with those of these pieces to or from the clients `[c]`; the kinds that the round is known to
        have."""
        more = {channel: (clients * present).astype(jnp.int32) for channel, (_, present) in pieces.items()}
        return {channel: count + more.get(channel, 0) for channel, count in self.messages.items()}

    def _transferred(
        self, start: Array, size: Array, bandwidth: Array, active: Array, waited: Array, capacity: float
    ) -> tuple[Array, Array, Array]:
        """(ends of this shard's transfers `[c]`; over all shards the largest rate, and the end of the last one `waited`
        for)."""
        starts, sizes, bandwidths, there, counted = self._gathered(start, size, bandwidth, active, waited)
        ends, peak = transfers(starts, sizes, bandwidths, there > 0, capacity)
        last = jnp.max(jnp.where(counted > 0, ends, 0.0), initial=0.0)
        return self.executor.own(ends), peak, last
