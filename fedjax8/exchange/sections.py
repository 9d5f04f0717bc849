"""Sections of a message: their bytes, whether they are sent, and the kinds of message that they are counted under."""

from collections.abc import Mapping

import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.types import MODEL, Array, Channel, PyTree

SectionsSent = Mapping[Channel, tuple[int, Array]]
"""Sections of a message, or of each client's, by kind: bytes, and 1 where it is sent, else 0."""


def channels_of(direction: str, name: str, tree: PyTree, sizes: Mapping[str, int]) -> dict[str, Channel]:
    """Part of a message to its kind; `sizes` are the bytes of the parts, `tree` is what the message encodes."""
    unencoded = trees.float32_bytes(tree)
    return {part: Channel(direction, name, size, 0 if part else unencoded, part) for part, size in sizes.items()}


def sizes_of(pieces: Mapping[str, tuple[int, Array]]) -> dict[str, int]:
    """Part of a message to its bytes; pieces as `trees.pieces` gives them."""
    return {part: size for part, (size, _) in pieces.items()}


def num_bytes(pieces: Mapping[str, tuple[int, Array]] | SectionsSent) -> Array:
    """float32 bytes of the sections that are sent, a number or `[c]`."""
    return sum((size * present.astype(jnp.float32) for size, present in pieces.values()), jnp.float32(0))


def measures_prefix(direction: str, name: str) -> str:
    """What the measures of a channel's codec begin with in the log: `uplink_`, `downlink_monitor_`, `peer_`."""
    way = f"{direction}link" if direction in ("up", "down") else direction
    return f"{way}_" if name == MODEL else f"{way}_{name}_"
