"""The type of dropouts, and the speeds of clients."""

import math
from collections.abc import Callable
from typing import NamedTuple

from fedjax8.types import Array, Key


class Speeds(NamedTuple):
    """Speeds of the clients of a round, float32 `[C]` each."""

    step_seconds: Array
    """Seconds of a local step."""
    down_bandwidth: Array
    """Bytes a second of a client's downlink."""
    up_bandwidth: Array
    """Bytes a second of its uplink."""


class Dropout(NamedTuple):
    """The choice of clients that drop out of a round after they received the model; see `dropouts`."""

    lost: Callable[[Key, Array], Array] | None = None
    """`(key of the round, int32 client ids [C]) -> bool [C]`: dropouts whatever they do. None: nobody."""
    speeds: Callable[[Key, Array], Speeds] | None = None
    """`(key of the round, int32 client ids [C]) -> Speeds`. None: nobody is late."""
    deadline: float = math.inf
    """Seconds from the start of a round; a later message is late."""
    steps: Callable[[Array], Array] = lambda sizes: sizes
    """Client sizes `[C]` to the local steps that a client of that size takes when it trains by its batch plan."""
