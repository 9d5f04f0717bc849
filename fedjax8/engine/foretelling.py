"""Seconds of clients before a round runs, by the system model and the sizes of messages.

    seconds_i = latency_i n + bytes down / B_down + step_seconds_i steps_i + bytes up / B_up

n is the number of messages of the client. Bytes are those of the way of a round (`Algorithm.ways`) with the most; where
every client sends each kind of message once, and leaves out no part, these are the seconds that the clock of the round
measures, unless the server's link is shared. Messages to another client count as messages up.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax8.participation.base import Phases
from fedjax8.systems import SystemModel
from fedjax8.types import Way


class MostTraffic(NamedTuple):
    """A client's messages in a round."""

    messages_down: int
    messages_up: int
    down_bytes: int
    up_bytes: int


class Foretold(NamedTuple):
    """Seconds of the clients of a run, before its rounds."""

    system: SystemModel
    seed: int
    steps: Callable[[Any], Any]
    """Numbers of rows to local steps."""
    ways: Callable[[int], Sequence[Way]]
    """Most local steps of a client to the ways of a round."""

    def known(self) -> dict[str, Any]:
        """What participations may know of time, as arguments of `Participants`; nothing in a run without a clock."""
        known: dict[str, Any] = {"phases": self.phases} if self.system.timed else {}
        return known | ({"available": self.system.available} if self.system.available else {})

    def phases(self, number: int, ids: np.ndarray, sizes: np.ndarray) -> Phases:
        """Seconds of these clients, of so many rows, in the round after `number` rounds, and their links' rates."""
        assert self.system.speeds is not None
        speeds, steps = self.system.speeds(self.seed, number, ids), np.asarray(self.steps(sizes), float)
        sent = traffic(self.ways, int(np.max(steps, initial=0)))
        down = sent.messages_down * speeds.latency + sent.down_bytes / speeds.down_bandwidth
        up = sent.messages_up * speeds.latency + sent.up_bytes / speeds.up_bandwidth
        return Phases(down, speeds.step_seconds * steps, up, speeds.down_bandwidth, speeds.up_bandwidth)


def traffic(ways: Callable[[int], Sequence[Way]], steps: int) -> MostTraffic:
    """The most traffic that a client of so many local steps can have in a round."""

    def of(way: Way) -> MostTraffic:
        ways_of = [[(c, n) for c, n in way.items() if c.direction in ends] for ends in (("down",), ("up", "peer"))]
        messages = [sum(n for c, n in one if not c.part) for one in ways_of]
        return MostTraffic(*messages, *(sum(c.message_bytes * n for c, n in one) for one in ways_of))

    return max((of(way) for way in ways(steps)), key=lambda found: found.down_bytes + found.up_bytes)
