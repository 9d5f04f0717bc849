"""Bytes sent, as Python integers: message sizes are static, message counts come from the device."""

from collections.abc import Mapping
from typing import NamedTuple

from fedjax8.types import Channel


class Ledger(NamedTuple):
    """Cumulative traffic of a run, over all clients, in bytes (octets)."""

    uplink_bytes: int = 0
    downlink_bytes: int = 0
    float32_bytes: int = 0
    """What the same exchanges would have cost unencoded."""

    def add(self, sent: Mapping[Channel, object]) -> "Ledger":
        """The ledger after these messages; values of `sent` are message counts."""
        up = down = plain = 0
        for channel, count in sent.items():
            total = channel.message_bytes * int(count)
            up, down = (up + total, down) if channel.direction == "up" else (up, down + total)
            plain += channel.float32_bytes * int(count)
        return Ledger(self.uplink_bytes + up, self.downlink_bytes + down, self.float32_bytes + plain)

    @property
    def saving(self) -> float:
        """`float32_bytes` over the bytes really sent; 1.0 before anything was sent."""
        sent = self.uplink_bytes + self.downlink_bytes
        return self.float32_bytes / sent if sent else 1.0
