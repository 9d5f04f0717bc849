"""Seconds of clients before a round runs, by the system model and the sizes of messages.

    seconds_i = latency_i n + bytes down / B_down + step_seconds_i steps_i + bytes up / B_up

n is the number of messages of the client. Bytes are those of the way of a round (`Algorithm.ways`) with the most; where
every client sends each kind of message once, and leaves out no part, these are the seconds that the clock of the round
measures, unless the server's link is shared.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax8.systems import SystemModel
from fedjax8.types import Way


class Traffic(NamedTuple):
    """A client's messages in a round."""

    messages: int
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

    def seconds(self, number: int, ids: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """float64 `[n]`: seconds of these clients, which have so many rows, in the round after `number` rounds."""
        assert self.system.speeds is not None
        speeds, steps = self.system.speeds(self.seed, number, ids), np.asarray(self.steps(sizes), float)
        messages, down, up = traffic(self.ways, int(np.max(steps, initial=0)))
        moving = down / speeds.down_bandwidth + up / speeds.up_bandwidth
        return np.asarray(messages * speeds.latency + moving + speeds.step_seconds * steps)


def traffic(ways: Callable[[int], Sequence[Way]], steps: int) -> Traffic:
    """The most traffic that a client of so many local steps can have in a round."""

    def of(way: Way) -> Traffic:
        sums = {d: sum(c.message_bytes * n for c, n in way.items() if c.direction == d) for d in ("down", "up")}
        return Traffic(sum(n for c, n in way.items() if not c.part), sums["down"], sums["up"])

    return max((of(way) for way in ways(steps)), key=lambda found: found.down_bytes + found.up_bytes)
