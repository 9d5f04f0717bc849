"""What a dropout is."""

import math
from collections.abc import Callable
from typing import NamedTuple

from fedjax8.types import Array, Key


class Speeds(NamedTuple):
    """How fast the clients of a round are, float32 `[C]` each."""

    step_seconds: Array
    """Seconds of a local step."""
    down_bandwidth: Array
    """Bytes a second that a client receives."""
    up_bandwidth: Array
    """Bytes a second that it sends."""


class Dropout(NamedTuple):
    """Which clients of a round are lost after they received the model; see `dropouts`."""

    lost: Callable[[Key, Array], Array] | None = None
    """`(key of the round, int32 client ids [C]) -> bool [C]`: lost whatever they do. None: nobody."""
    speeds: Callable[[Key, Array], Speeds] | None = None
    """`(key of the round, int32 client ids [C]) -> Speeds`. None: nobody is late."""
    deadline: float = math.inf
    """Seconds from the start of a round; what arrives later is late."""
    steps: Callable[[Array], Array] = lambda sizes: sizes
    """Client sizes `[C]` to the local steps that a client of that size takes when it trains by its batch plan."""
