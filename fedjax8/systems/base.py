"""The type of system models: how fast devices and links are, and when clients are there. NumPy, on the host."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Speeds(NamedTuple):
    """Speeds of `n` clients in one round: float `[n]` each."""

    step_seconds: np.ndarray
    """Seconds of a local step."""
    down_bandwidth: np.ndarray
    """Bytes a second of a client's downlink."""
    up_bandwidth: np.ndarray
    """Bytes a second of its uplink."""
    latency: np.ndarray
    """Seconds from the start of a message to its first byte, either way."""


class ServerLink(NamedTuple):
    """The server's own link, which the transfers of one direction share: at each moment max-min fair."""

    down_bandwidth: float = math.inf
    """Bytes a second to all clients together."""
    up_bandwidth: float = math.inf
    """Bytes a second from all clients together."""


class SystemModel(NamedTuple):
    """Devices and links of a run; see `systems`. Its functions are pure, so that a resumed run has the same times."""

    speeds: Callable[[int, int, np.ndarray], Speeds] | None = None
    """`(seed of the run, rounds done before, client ids [n]) -> Speeds`; None: a run has no clock."""
    server: ServerLink = ServerLink()
    available: Callable[[float, np.ndarray], np.ndarray] | None = None
    """`(simulated seconds since the start, client ids [n]) -> bool [n]`: clients that can be asked; None: all."""

    @property
    def timed(self) -> bool:
        """Whether a run with it has a clock."""
        return self.speeds is not None
