"""Byzantine clients: what they know, and what they do."""

from collections.abc import Callable
from typing import NamedTuple

from fedjax8.types.models import Array, Batch, Key, PyTree


class Colluders(NamedTuple):
    """Statistics of the changes that the honest clients of a round would send, as colluding attackers know them."""

    mean: PyTree
    """Unweighted mean of their changes, before encoding."""
    deviation: PyTree
    """Standard deviation of every value."""
    honest: Array
    """float32: number of honest clients."""
    attackers: Array
    """float32: number of attackers."""


class Attack(NamedTuple):
    """The behavior of Byzantine clients; see `attacks`. A change is as in `Aggregator`."""

    members: Callable[[Array, int], Array]
    """`(int32 client ids, number of registered clients) -> bool`: the attackers, the same ones in every round."""
    batch: Callable[[Batch], Batch] | None = None
    """Batch to the poisoned batch that attackers train on; None: they train honestly."""
    send: Callable[[Key, PyTree, Colluders | None], PyTree] | None = None
    """`(key, own change, Colluders or None) -> the change that is sent in its place`; None: they send their own."""
    collude: bool = False
    """Whether `send` is given the `Colluders`, for which every client is trained twice."""
