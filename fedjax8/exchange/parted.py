"""Contributions of which a client sends some parts only, and the mean of each part over the clients that sent it.

    mean_p = sum_i w_i m_ip x_ip / sum_i w_i m_ip     where the divisor is above 0, else the value that p started from

An entry of a contribution that is a tuple may be such a *parted* one (`Contribution.present`): m_ip says whether client
i sends part p. A part is a layer (`algorithms.salf`), a block of coordinates (`algorithms.pr_fl`), any tree. The
message has `Sections`, a bit a part and the codec's own message of each part that is sent, so that bytes and seconds
are those of what is sent, the bits included. The server learns from the message which parts a client sent.

Messages down are parted in the same way: a message is encoded once, and each client receives some of its parts.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import numerics, trees
from fedjax8.codecs.none import none
from fedjax8.errors import UserError
from fedjax8.exchange.arriving import zero_unless
from fedjax8.types import Array, Codec, Key, Partial, PyTree, Ratio, Sections

PartsPresent = Mapping[str, Array]
"""Name of a parted entry to bool `[n]`: which of its parts are sent."""
REST, PARTS, PRESENT = "rest", "parts", "present"


@struct.dataclass
class PartedMessage:
    """A message of a tree with parted entries."""

    rest: Any
    """The codec's message of the other entries."""
    parts: dict[str, Sections]
    """The codec's messages of the parts, by entry."""


def divided(codec: Codec, tree: PyTree, present: PartsPresent) -> tuple[Codec, PyTree]:
    """(codec, tree) to encode in place of those given: themselves, where no entry is parted."""
    if not present:
        return codec, tree
    rest = {name: entry for name, entry in tree.items() if name not in present}
    return parted(codec), {REST: rest, PARTS: {name: tree[name] for name in present}, PRESENT: dict(present)}


def whole(tree: PyTree, present: PartsPresent, origin: Mapping[str, PyTree]) -> tuple[PyTree, PartsPresent]:
    """(the tree that was divided, which parts arrived), of a decoded message; `origin` stands in for parts that were
    left out, zeros where it has none."""
    if not present:
        return tree, {}
    arrived = tree[PRESENT]
    entries = {name: _filled(parts, arrived[name], origin.get(name)) for name, parts in tree[PARTS].items()}
    return tree[REST] | entries, arrived


def kept_whole(decoded: PyTree, weight: Array, present: PartsPresent) -> tuple[Partial, PyTree]:
    """No addends, and the contribution with its weight, for exchanges that keep them one by one; zeros where it has no
    weight."""
    check_whole(present)
    return Partial(()), (zero_unless(weight > 0, decoded), weight)


def check_whole(present: PartsPresent) -> None:
    """UserError where parts may be left out, for rules that need whole contributions."""
    if present:
        raise UserError("an aggregator needs whole contributions, and clients of this algorithm leave parts out")


def _filled(parts: tuple[PyTree, ...], there: Array, start: Any) -> tuple[PyTree, ...]:
    start = trees.zeros_like(parts) if start is None else start
    return tuple(trees.select(there[i], part, old) for i, (part, old) in enumerate(zip(parts, start, strict=True)))


def weighted(tree: PyTree, weight: Array, present: PartsPresent) -> tuple[PyTree, Array, dict[str, Array]]:
    """A contribution's addends to `mean_of`: (weight times its values, weight, weight of each part that it sent)."""
    of_parts = {name: jnp.where(there, weight, 0.0) for name, there in present.items()}
    if not present:
        return _times(tree, weight), weight, {}
    sums = {name: _times(entry, weight) for name, entry in tree.items() if name not in present}
    for name, w in of_parts.items():
        sums[name] = tuple(_times(part, w[i]) for i, part in enumerate(tree[name]))
    return sums, weight, of_parts


def mean_of(
    sums: tuple[PyTree, Array, dict[str, Array]], origin: Mapping[str, PyTree], like: PyTree
) -> tuple[PyTree, Array, dict[str, Array]]:
    """(mean in the dtypes of `like`, weight, share of the weight that each part has), of sums of `weighted`."""
    total, weight, of_parts = sums
    if not of_parts:
        return _over(total, weight, like), weight, {}
    mean = {name: _over(entry, weight, like[name]) for name, entry in total.items() if name not in of_parts}
    for name, w in of_parts.items():
        parts = tuple(_over(x, w[i], like[name][i]) for i, x in enumerate(total[name]))
        mean[name] = _filled(parts, w > 0, origin.get(name))
    return mean, weight, {name: w / _above_zero(weight) for name, w in of_parts.items()}


def _times(tree: PyTree, weight: Array) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(weight > 0, weight * x, 0.0), tree)


def _over(total: PyTree, weight: Array, like: PyTree) -> PyTree:
    divisor = _above_zero(weight)
    return jax.tree.map(lambda x, like: trees.as_dtype(x / divisor, like.dtype), total, like)


def _above_zero(weight: Array) -> Array:
    return jnp.where(weight > 0, weight, 1.0)


def received(message: PyTree, present: PartsPresent) -> dict[str, tuple[int, Array]]:
    """Pieces of a message down as `trees.pieces` gives them, 1 where a client receives one: of the parted entries those
    of `present`, bool `[C, n]` each."""
    if not present:
        return trees.pieces(message)

    def of_client(present: PartsPresent) -> dict[str, Array]:
        parts = {name: s.replace(present=numerics.pack_bits(present[name], 1)) for name, s in message.parts.items()}
        return {piece: there for piece, (_, there) in trees.pieces(message.replace(parts=parts)).items()}

    there = jax.vmap(of_client)(dict(present))
    return {piece: (size, there[piece]) for piece, (size, _) in trees.pieces(message).items()}


def parted(codec: Codec) -> Codec:
    """Codec of a tree that `divided` made: `codec` for the whole entries together, and for each part that is sent."""

    def of(tree: PyTree) -> Codec:
        return codec if jax.tree.leaves(tree) else none()

    def init(tree: PyTree) -> PyTree:
        parts = {n: tuple(of(x).init({n: x}) for x in entry) for n, entry in tree[PARTS].items()}
        return of(tree[REST]).init(tree[REST]), parts

    def encode(key: Key, state: PyTree, tree: PyTree) -> tuple[PyTree, PyTree]:
        rest_key, parts_key = jax.random.split(key)
        rest, rest_state = of(tree[REST]).encode(rest_key, state[0], tree[REST])
        sections, states = {}, {}
        for number, (name, entry) in enumerate(tree[PARTS].items()):
            there, entry_key = tree[PRESENT][name], jax.random.fold_in(parts_key, number)
            messages, after = [], []
            for i, (part, own) in enumerate(zip(entry, state[1][name], strict=True)):
                message, new = of(part).encode(jax.random.fold_in(entry_key, i), own, {name: part})
                messages.append(trees.select(there[i], message, trees.zeros_like(message)))
                after.append(trees.select(there[i], new, own))
            sections[name] = Sections(numerics.pack_bits(there, 1), tuple(messages))
            states[name] = tuple(after)
        return PartedMessage(rest, sections), (rest_state, states)

    def decode(state: PyTree, message: PartedMessage) -> PyTree:
        found, present = {}, {}
        for name, sections in message.parts.items():
            there = numerics.unpack_bits(sections.present, 1, len(sections.parts)).astype(bool)
            pairs = zip(state[1][name], sections.parts, strict=True)
            parts = tuple((codec if jax.tree.leaves(part) else none()).decode(own, part)[name] for own, part in pairs)
            found[name], present[name] = _filled(parts, there, None), there
        rest = (codec if jax.tree.leaves(message.rest) else none()).decode(state[0], message.rest)
        return {REST: rest, PARTS: found, PRESENT: present}

    def measure(tree: PyTree, decoded: PyTree) -> dict[str, Ratio]:
        total: dict[str, Ratio] = dict(of(tree[REST]).measure(tree[REST], decoded[REST]))
        for name, entry in tree[PARTS].items():
            for i, part in enumerate(entry):
                there = tree[PRESENT][name][i]
                for what, ratio in of(part).measure({name: part}, {name: decoded[PARTS][name][i]}).items():
                    ratio = jax.tree.map(lambda x, there=there: jnp.where(there, x, 0), ratio)
                    total[what] = trees.add(total[what], ratio) if what in total else ratio
        return total

    return Codec(init, encode, decode, codec.unbiased, measure=measure)
