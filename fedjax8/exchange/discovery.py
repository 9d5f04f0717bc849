"""The kinds of message of a round, found by tracing it without running it."""

from typing import NamedTuple

from fedjax8.types import Channel, Codec, PyTree, Ratio


class Discovery(NamedTuple):
    """One kind of message, as a traced round sends it."""

    channel: Channel
    tree: PyTree
    """Shapes of the tree that is sent."""
    codec: Codec
    """Its codec."""
    measured: dict[str, Ratio]
    """Shapes of the codec's measures, under their names in the log."""


class Recorder:
    """Collects `Discovery`s while a round is traced without being run. Compared by identity, as static data must be."""

    def __init__(self) -> None:
        self.found: list[Discovery] = []

    def note(self, discovery: Discovery) -> None:
        """Adds one; ValueError if its channel is known with another tree, since codec state belongs to a channel."""
        for other in self.found:
            if other.channel[:2] == discovery.channel[:2] and other.tree != discovery.tree:
                direction, name, *_ = other.channel
                raise ValueError(f"two different trees are sent {direction} as {name!r}; give them different names")
        if all(other.channel != discovery.channel for other in self.found):
            self.found.append(discovery)
