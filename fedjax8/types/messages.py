"""Messages: codecs, the sections of a message, and the channels that messages are counted by."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import struct

from fedjax8.types.models import Array, Key, PyTree, Ratio, nothing


class Codec(NamedTuple):
    """Tree to message and back. A message is a pytree in wire dtypes; its size is read off its leaves.

    Invariants: the message's structure, shapes and dtypes depend on the tree's shapes alone (parts may be left out:
    `Sections`); leaves that are not float32 pass through unchanged; `decode` yields float32 and the tree that was
    encoded, up to the stated error. Facts that both sides know (shapes, names) may be static fields of a message's
    classes.
    Finite trees decode to finite ones: values beyond the largest float32 are clipped to it. Subnormal numbers, below
    2**-126, may be flushed to zero, as processors do.
    """

    init: Callable[[PyTree], PyTree]
    """Tree (or its `ShapeDtypeStruct`s) to the state before the first message; `()` for most codecs."""
    encode: Callable[[Key, PyTree, PyTree], tuple[PyTree, PyTree]]
    """`(key, state, tree) -> (message, state)`."""
    decode: Callable[[PyTree, PyTree], PyTree]
    """`(state, message) -> tree`, with the state that `encode` was given: the receiver keeps a copy where it needs one
    (`delta`), which most codecs do not."""
    unbiased: bool
    """Whether E[decoded] = x over keys, for every tree whose clips, if it has any, clip nothing."""
    error_bound: Callable[[PyTree], PyTree] | None = None
    """Tree to the largest possible `|decoded - x|` per element, if there is such a bound."""
    measure: Callable[[PyTree, PyTree], dict[str, Ratio]] = nothing
    """`(tree, decoded tree) -> {name: Ratio}`: clipped values, quantization error and so on, summed over messages and
    logged."""
    contracts: bool = False
    """Whether E||decoded - x||^2 <= q ||x||^2 + c over keys, for every update x, with q < 1 and c that depend on shapes
    and settings alone. The memory of `error_feedback` and `delta` stays bounded around such a codec."""
    aligned: bool = False
    """Whether that holds for the multiple of each decoded leaf that is nearest to x, so that the codec contracts once
    the factor is sent along. Codecs that are unbiased or contract need not say so."""


@struct.dataclass
class Sections:
    """Parts of a message, some of which are left out, so that its size depends on data though its shapes do not.

    `present` and the parts whose bit is 1 are sent; the other parts hold zeros.
    """

    present: Array
    """uint8 `[ceil(n / 8)]`: bit i % 8 of byte i // 8 says whether part i is sent. See `numerics.pack_bits`."""
    parts: tuple[PyTree, ...]
    """The n parts."""


def check_codec(given: Any) -> None:
    """Raises ValueError unless `given` is a `Codec`."""
    if not isinstance(given, Codec):
        raise ValueError(f"a codec is needed, such as fp8(); got {given!r}")


MODEL = "model"
"""Name of the messages that every round has."""


class Channel(NamedTuple):
    """One kind of message, or a section of one, and its size: the key of a count. Static, so that it can stand in a
    pytree's structure."""

    direction: str
    """`up` (client to server), `down` (server to client), `peer` (worker to worker) or `edge` (edge server to server or
    back)."""
    name: str
    message_bytes: int
    """Bytes of one encoded message."""
    float32_bytes: int
    """Bytes of the same tree unencoded, without the clips that only the encoding needs; 0 for a section."""
    part: str = ""
    """One of a message's `Sections`, counted by itself; empty for the rest, which is always sent."""
