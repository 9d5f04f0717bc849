"""The type of dropouts."""

import math
from collections.abc import Callable
from typing import NamedTuple

from fedjax8.types import Array, Key


class Dropout(NamedTuple):
    """The choice of clients that drop out of a round after they received the model; see `dropouts`."""

    lost: Callable[[Key, Array], Array] | None = None
    """`(key of the round, int32 client ids [C]) -> bool [C]`: dropouts whatever they do. None: nobody."""
    deadline: float = math.inf
    """Seconds from the start of a round; a later message is late. Needs a system model."""
