"""The kinds of message of a round, found by tracing it without running it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.errors import UserError
from fedjax8.types import Channel, Codec, Key, PyTree, Ratio


class Discovery(NamedTuple):
    """One kind of message, as a traced round sends it."""

    channel: Channel
    tree: PyTree
    """Shapes of the tree that is sent."""
    codec: Codec
    """Its codec."""
    measured: dict[str, Ratio]
    """Shapes of the codec's measures, under their names in the log."""
    copies: int = 0
    """Codecs with a state of their own, where edge servers send such a message each; 0: one codec."""

    def first_state(self) -> PyTree:
        """The state of its codec, or of each of its copies `[copies, ...]`, before the first message."""
        return first_state(self.codec, self.tree, self.copies)


def first_state(codec: Codec, tree: PyTree, copies: int) -> PyTree:
    """The state of a codec before its first message of such a tree, or of so many copies of it, `[copies, ...]`."""
    state = codec.init(tree)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (copies, *jnp.shape(x))), state) if copies else state


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


def coded(codec: Codec, key: Key, state: PyTree, tree: PyTree, name: str) -> tuple[PyTree, PyTree, PyTree]:
    """(message, codec state after it, tree as its receiver decodes it) of a message called `name`.

    Raises UserError, where it is traced, for a codec whose `decode` gives another tree than `encode` took, or whose
    state does not keep its shapes and dtypes.
    """
    message, after = codec.encode(key, state, tree)
    decoded = codec.decode(state, message)
    _check_alike(f"message {name!r}: decode gives another tree than encode was given", tree, decoded, dtypes=False)
    _check_alike(f"message {name!r}: encode gives a state unlike the one it was given", state, after)
    return message, after, decoded


def _check_alike(mistake: str, given: PyTree, found: PyTree, dtypes: bool = True) -> None:
    facts = [
        (
            jax.tree.structure(tree),
            [(x.shape, x.dtype if dtypes else None) for x in jax.tree.leaves(trees.shapes(tree))],
        )
        for tree in (given, found)
    ]
    if facts[0] == facts[1]:
        return
    import chex  # explains the first difference; slow to import, so only where there is one

    check = chex.assert_trees_all_equal_shapes_and_dtypes if dtypes else chex.assert_trees_all_equal_shapes
    try:
        check(trees.shapes(given), trees.shapes(found))
    except (AssertionError, ValueError) as error:
        raise UserError(f"codec of {mistake}: {' '.join(str(error).split())[:300]}") from error
