"""Bytes sent, as Python integers: message sizes are static, message counts come from the device. And seconds."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from fedjax8.display import Facts, shows
from fedjax8.exchange.clock import Elapsed
from fedjax8.types import MODEL, Channel

OTHERS = ("peer", "edge")
"""Directions of messages that run neither up nor down."""


@shows
class Ledger(NamedTuple):
    """Messages of a run, over all clients: how many of each kind were sent. Bytes are octets."""

    sent: Mapping[Channel, int] = {}
    seconds: float | None = None
    """Simulated seconds since the start; None without a clock."""
    wasted: Mapping[Channel, int] = {}
    """Messages from and to clients that had no part in their round's result; counted where there is a clock."""
    memory: Mapping[str, Any] = {}
    """What the participation remembers of the rounds so far, values of JSON."""

    def _facts(self) -> Facts:
        facts = self.totals() | {"messages": sum(self.sent.values()), "saving": f"{self.saving:.2f}x"}
        return facts if self.seconds is None else facts | {"simulated_seconds": self.seconds}

    def add(self, sent: Mapping[Channel, Any], elapsed: Elapsed | tuple[()] = ()) -> "Ledger":
        """The ledger after a round with these messages, values of `sent` are message counts, and its time."""
        after = self._replace(sent=_added(self.sent, sent))
        if not isinstance(elapsed, Elapsed):
            return after
        seconds = (self.seconds or 0.0) + float(elapsed.seconds)
        return after._replace(seconds=seconds, wasted=_added(self.wasted, elapsed.wasted))

    def remember(self, step: Callable[[Mapping[str, Any], Mapping[str, Any]], Any] | None, line: Any) -> "Ledger":
        """The ledger after a round with this line of the log; `step` as `Participation.remember`."""
        return self if step is None else self._replace(memory=step(self.memory, line))

    @property
    def wasted_bytes(self) -> int:
        """Bytes of the messages in `wasted`, all directions."""
        return sum(channel.message_bytes * count for channel, count in self.wasted.items())

    def num_bytes(self, direction: str, name: str | None = None) -> int:
        """Bytes sent in a direction, as in `Channel`, of one name or of all."""
        return sum(
            channel.message_bytes * count
            for channel, count in self.sent.items()
            if channel.direction == direction and name in (None, channel.name)
        )

    @property
    def uplink_bytes(self) -> int:
        """Bytes from clients to the server."""
        return self.num_bytes("up")

    @property
    def downlink_bytes(self) -> int:
        """Bytes from the server to clients."""
        return self.num_bytes("down")

    @property
    def others(self) -> dict[str, int]:
        """Bytes of the directions beside up and down that this run has: `peer_bytes`, `edge_bytes`."""
        there = {channel.direction for channel in self.sent}
        return {f"{direction}_bytes": self.num_bytes(direction) for direction in OTHERS if direction in there}

    @property
    def total_bytes(self) -> int:
        """Bytes of all messages."""
        return sum(channel.message_bytes * count for channel, count in self.sent.items())

    @property
    def float32_bytes(self) -> int:
        """Bytes of the same messages unencoded."""
        return sum(channel.float32_bytes * count for channel, count in self.sent.items())

    @property
    def saving(self) -> float:
        """`float32_bytes` over the bytes really sent; 1.0 before anything was sent."""
        return self.float32_bytes / self.total_bytes if self.total_bytes else 1.0

    def totals(self) -> dict[str, int]:
        """Bytes of each direction, and of the same messages in float32."""
        found = {"uplink_bytes": self.uplink_bytes, "downlink_bytes": self.downlink_bytes, **self.others}
        return found | {"float32_bytes": self.float32_bytes}

    def by_name(self) -> dict[str, int]:
        """Bytes of each name, as `uplink_monitor_bytes`, of directions in which more than the model travels."""
        prefixes = {"up": "uplink", "down": "downlink"} | {direction: direction for direction in OTHERS}
        names = {direction: {c.name for c in self.sent if c.direction == direction} for direction in prefixes}
        return {
            f"{prefixes[direction]}_{name}_bytes": self.num_bytes(direction, name)
            for direction, found in names.items()
            if found - {MODEL}
            for name in sorted(found)
        }

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a checkpoint."""
        kept = {"sent": _listed(self.sent), "seconds": self.seconds, "wasted": _listed(self.wasted)}
        return kept | ({"memory": dict(self.memory)} if self.memory else {})

    @staticmethod
    def from_json(kept: Any) -> "Ledger":
        """The ledger that `to_json` was called on; also where it was the list of messages alone, as runs before there
        was a clock have it."""
        kept = kept if isinstance(kept, Mapping) else {"sent": kept, "seconds": None, "wasted": []}
        return Ledger(_counts(kept["sent"]), kept["seconds"], _counts(kept["wasted"]), kept.get("memory", {}))


def _added(counts: Mapping[Channel, int], more: Mapping[Channel, Any]) -> dict[Channel, int]:
    return {**counts, **{channel: counts.get(channel, 0) + int(count) for channel, count in more.items()}}


def _listed(counts: Mapping[Channel, int]) -> list[list[Any]]:
    return [[*channel, count] for channel, count in counts.items()]


def _counts(entries: Iterable[list[Any]]) -> dict[Channel, int]:
    return {Channel(*channel): count for *channel, count in entries}
