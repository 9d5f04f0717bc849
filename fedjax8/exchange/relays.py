"""Messages of edge servers: K trees, each encoded by itself, to or from the server or to the clients of a group.

Leaves are `[K, ...]`, the state of each codec too. Bytes are those of one message, times how often each is sent.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.exchange.discovery import coded, first_state
from fedjax8.exchange.sections import channels_of
from fedjax8.types import Array, Codec, Cohort, Key, PyTree, Ratio


class Relayed(NamedTuple):
    """K messages and what became of them."""

    decoded: PyTree
    """float32 `[K, ...]`."""
    state: PyTree
    """The codecs' states after them, `[K, ...]`."""
    sizes: Mapping[str, int]
    """Bytes of each part of one message."""
    present: Mapping[str, Array]
    """int32 `[K]`: whether each message has the part."""
    one: PyTree
    """Shapes of one tree."""
    measured: dict[str, Ratio]
    """The codec's measures, over the messages that are sent."""


def one_of(tree: PyTree) -> PyTree:
    """Shapes of one of K trees."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)


def relayed(codec: Codec, key: Key, state: PyTree, tree: PyTree, name: str, sent: Array) -> Relayed:
    """K messages called `name`; `sent`, int32 `[K]`, says how often each is sent."""
    count = len(sent)
    keys = jax.random.split(key, count)
    message, after, decoded = jax.vmap(lambda k, s, t: coded(codec, k, s, t, name))(keys, state, tree)
    sizes: dict[str, int] = {}

    def parts(one: PyTree) -> dict[str, Array]:
        pieces = trees.pieces(one)
        sizes.update({part: size for part, (size, _) in pieces.items()})
        return {part: jnp.asarray(there, jnp.int32) for part, (_, there) in pieces.items()}

    present = jax.vmap(parts)(message)
    measures = jax.vmap(codec.measure)(tree, decoded)
    heard = (sent > 0).astype(jnp.float32)
    measured = jax.tree.map(lambda x: jnp.sum(heard * x), measures)
    return Relayed(decoded, after, sizes, present, one_of(tree), measured)


def relay(
    link: Any, key: Key, tree: PyTree, name: str, sent: Array, codec: Codec, to: Cohort | None
) -> tuple[PyTree, Any]:
    """(decoded trees, link): `Link.relay`."""
    copies = len(sent)
    state = first_state(codec, one_of(tree), copies) if link.recorder else link.down_states[name]
    with jax.named_scope("relay"):
        out = relayed(codec, key, state, tree, name, sent)
    kinds = channels_of("edge" if to is None else "down", name, out.one, out.sizes)
    counts = {channel: jnp.sum(sent * out.present[part]) for part, channel in kinds.items()}
    after = link.counted(codec, out.one, counts, out.measured, copies)
    if to is not None:
        group = to.memory["group"]
        pieces = {channel: (channel.message_bytes, out.present[part][group]) for part, channel in kinds.items()}
        clock = after.clock.received(link.clock.receivers(to), pieces, False)
        after = dataclasses.replace(after, clock=clock)
    states = link.down_states if link.recorder else {**link.down_states, name: out.state}
    return out.decoded, dataclasses.replace(after, down_states=states)
