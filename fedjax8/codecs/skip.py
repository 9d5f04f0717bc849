"""Opportunistic block dropout: of a model's blocks, those that changed most are sent; the rest decodes to no change.

    importance of block b = ||x_b||_2 / |b|;   by falling importance, keep b if the kept size stays <= (1 - dropout) d

FedOBD (Chen et al., arXiv 2208.05174), the greedy walk as in the authors' code: a block that does not fit is passed
over and the walk goes on. It acts on updates, where x is new minus old; for parameters use it inside `delta`. What is
one block is said by path patterns, else by the model's top-level modules.

Message: `Sections`, a bit per block and the inner codec's messages of the blocks that are kept. Leaves that are not
float32 are always sent.
"""

import fnmatch
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fedjax8 import numerics, trees
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.types import Array, Codec, PyTree, Sections, check_codec


@struct.dataclass
class Kept:
    """A message. Structure, names and blocks of the tree are static: both sides know them."""

    sections: Sections
    """Blocks, each as the inner codec's message of a dict from path name to leaf."""
    others: dict[str, Array]
    """Leaves that are not float32."""
    structure: Any = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)


def skip(codec: Codec, dropout: float = 0.3, *, blocks: Sequence[str] = ()) -> Codec:
    """Codec that sends the most important blocks of an update through `codec`.

    Args:
      codec: encodes each block by itself. Its state of a block that is left out stays as it is.
      dropout: lambda of the paper, 0 to 1: fraction of the values that is left out at least (0.3 in the authors' code).
      blocks: shell-style patterns on path names, such as `*/layer_1/*`; leaves that match the same pattern first are
        one block. Leaves that match none belong to the block of their module, the second part of their path: the
        kernel `update/Conv_0/kernel` to `Conv_0`.

    Guarantees: the size depends on data (`Sections`) and is at most the inner codec's and a bit per block; a block
    arrives as the inner codec decodes it or as zeros.
    Measures what the inner codec measures, over all blocks.

    Raises:
      UserError: when the run is set up, if a pattern matches no leaf; names the nearest path.
    """
    check_codec(codec)
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must be 0 to 1; got {dropout!r}")
    patterns = (blocks,) if isinstance(blocks, str) else tuple(blocks)

    def block_of(name):
        matches = (p for p in patterns if fnmatch.fnmatchcase(name, p))
        return ("pattern", pattern) if (pattern := next(matches, None)) else ("module", name.split("/")[:2][-1])

    def split(tree: PyTree) -> tuple[list[dict], dict]:
        found, others = {}, {}
        for name, x in trees.named_leaves(tree).items():
            into = found.setdefault(block_of(name), {}) if trees.is_float32(x) else others
            into[name] = x
        return list(found.values()), others

    def init(tree):
        names = list(trees.named_leaves(tree))
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                near = suggest(pattern, names)
                raise UserError(f"skip: pattern {pattern!r} matches none of {', '.join(names)}{near}")
        return tuple(codec.init(block) for block in split(tree)[0])

    def encode(key, state, tree):
        found, others = split(tree)
        keep = _greedy(found, dropout)
        messages, states = [], []
        for index, (block, own) in enumerate(zip(found, state, strict=True)):
            message, after = codec.encode(jax.random.fold_in(key, index), own, block)
            messages.append(trees.select(keep[index], message, trees.zeros_like(message)))
            states.append(trees.select(keep[index], after, own))
        sections = Sections(numerics.pack_bits(keep, 1), tuple(messages))
        return Kept(sections, others, jax.tree.structure(tree), tuple(trees.named_leaves(tree))), tuple(states)

    def decode(state, message):
        sections, leaves = message.sections, dict(message.others)
        keep = numerics.unpack_bits(sections.present, 1, len(sections.parts)).astype(bool)
        for index, (part, own) in enumerate(zip(sections.parts, state, strict=True)):
            block = codec.decode(own, part)
            leaves |= trees.select(keep[index], block, trees.zeros_like(block))
        return jax.tree.unflatten(message.structure, [leaves[name] for name in message.names])

    def error_bound(tree):
        found, others = split(tree)
        bounds = jax.tree.map(jnp.zeros_like, others)
        for block in found:
            inner = (codec.error_bound or trees.zeros_like)(block)
            bounds |= {name: jnp.maximum(jnp.abs(x), inner[name]) for name, x in block.items()}
        return jax.tree.unflatten(jax.tree.structure(tree), [bounds[name] for name in trees.named_leaves(tree)])

    bounded = None if codec.error_bound is None else error_bound
    return Codec(init, encode, decode, codec.unbiased and dropout == 0, bounded, codec.measure)


def _greedy(blocks: list[dict], dropout: float) -> Array:
    """bool `[n]`: which blocks are kept."""
    if not blocks:
        return jnp.zeros(0, bool)
    counts = [sum(x.size for x in block.values()) for block in blocks]
    # A product such as 0.7 * 10 must not fall below the whole number that it is meant to be.
    budget = int((1 - dropout) * sum(counts) * (1 + 1e-12))
    importance = jnp.stack([_norm(list(b.values())) / max(n, 1) for b, n in zip(blocks, counts, strict=True)])
    sizes = jnp.asarray(counts, jnp.int32)

    def walk(used, block):
        fits = used + sizes[block] <= budget
        return jnp.where(fits, used + sizes[block], used), fits

    order = jnp.argsort(-importance, stable=True)
    _, fits = lax.scan(walk, jnp.int32(0), order)
    return jnp.zeros(len(blocks), bool).at[order].set(fits)


def _norm(leaves: Sequence[Array]) -> Array:
    """Euclidean norm, of values whose squares may leave float32 too."""
    largest = jnp.maximum(jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]).max(), 0.0)
    unit = jnp.where(largest > 0, largest, 1.0)
    return largest * jnp.sqrt(sum(jnp.sum(jnp.square(x / unit)) for x in leaves))


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.none import none

    return (
        {"codec": none()},
        {"codec": none(), "dropout": 0.0},
        {"codec": fp8(clip="max", min_ndim=0), "dropout": 0.5, "blocks": ("*/kernel",)},
    )


EXAMPLES = _examples()
