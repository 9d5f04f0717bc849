"""Bytes sent, as Python integers: message sizes are static, message counts come from the device."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedjax8.display import Facts, shows
from fedjax8.types import MODEL, Channel


@shows
class Ledger(NamedTuple):
    """Messages of a run, over all clients: how many of each kind were sent. Bytes are octets."""

    sent: Mapping[Channel, int] = {}

    def _facts(self) -> Facts:
        return self.totals() | {"messages": sum(self.sent.values()), "saving": f"{self.saving:.2f}x"}

    def add(self, sent: Mapping[Channel, Any]) -> "Ledger":
        """The ledger after these messages; values of `sent` are message counts."""
        new = {channel: int(count) for channel, count in sent.items()}
        return Ledger({**self.sent, **{channel: self.sent.get(channel, 0) + count for channel, count in new.items()}})

    def num_bytes(self, direction: str, name: str | None = None) -> int:
        """Bytes sent in a direction, `up` or `down`, of one name or of all."""
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
    def float32_bytes(self) -> int:
        """Bytes of the same messages unencoded."""
        return sum(channel.float32_bytes * count for channel, count in self.sent.items())

    @property
    def saving(self) -> float:
        """`float32_bytes` over the bytes really sent; 1.0 before anything was sent."""
        sent = self.uplink_bytes + self.downlink_bytes
        return self.float32_bytes / sent if sent else 1.0

    def totals(self) -> dict[str, int]:
        """Bytes of both directions, and of the same messages in float32."""
        return {name: getattr(self, name) for name in ("uplink_bytes", "downlink_bytes", "float32_bytes")}

    def by_name(self) -> dict[str, int]:
        """Bytes of each name, as `uplink_monitor_bytes`, of directions in which more than the model travels."""
        names = {direction: {c.name for c in self.sent if c.direction == direction} for direction in ("up", "down")}
        return {
            f"{direction}link_{name}_bytes": self.num_bytes(direction, name)
            for direction, found in names.items()
            if found - {MODEL}
            for name in sorted(found)
        }

    def to_json(self) -> list[list[Any]]:
        """Plain lists, for a checkpoint."""
        return [[*channel, count] for channel, count in self.sent.items()]

    @staticmethod
    def from_json(entries: Iterable[list[Any]]) -> "Ledger":
        """The ledger that `to_json` was called on."""
        return Ledger({Channel(*channel): count for *channel, count in entries})
