"""Opportunistic block dropout: of a model's blocks, those that changed most are sent; the rest decodes to no change.

    importance of block b = ||x_b||_2 / |b|;   by falling importance, keep b if the kept size stays <= (1 - dropout) d

FedOBD (Chen et al., arXiv 2208.05174), the greedy walk as in the authors' code: a block that does not fit is passed
over and the walk goes on. It acts on updates, where x is new minus old; for parameters use it inside `delta`. Path
patterns define the blocks, else the model's top-level modules do.

Ours: a block that takes more than half of the budget is cut into pieces of at most that size, ranges of rows of
its matrices, and the walk chooses among pieces. Whole, a layer that holds most of a small model would never be sent:
it does not fit, or not beside the small blocks, whose norm per value is larger. Deep models of similar blocks are not
cut. Blocks left out of one update come later inside `error_feedback` (or `delta`), and only there.

Message: `Sections`, a bit per piece and the inner codec's messages of the pieces that are kept. Leaves that are not
float32 are always sent.
"""

import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from fedjax8 import numerics, trees
from fedjax8.codecs import _pieces
from fedjax8.codecs._leaves import divided
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.types import Array, Codec, PyTree, Sections, check_codec


@struct.dataclass
class Kept:
    """A message. Structure, names and pieces of the tree are static: both sides know them."""

    sections: Sections
    """Pieces, each as the inner codec's message of a dict from path name to the piece's values of a leaf."""
    others: dict[str, Array]
    """Leaves that are not float32."""
    structure: Any = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)
    pieces: tuple[tuple[_pieces.Slice, ...], ...] = struct.field(pytree_node=False)
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = struct.field(pytree_node=False)
    """Shapes of the float32 leaves, by path name."""


def skip(codec: Codec, dropout: float = 0.3, *, blocks: Sequence[str] = ()) -> Codec:
    """Codec that sends the most important blocks of an update through `codec`.

    Args:
      codec: encodes each piece by itself. Its state of a piece that is left out stays as it is.
      dropout: lambda of the paper, from 0 to below 1: fraction of the values that is left out at least (0.3 in the
        authors' code).
      blocks: shell-style patterns on path names, such as `*/layer_1/*`; leaves that match the same pattern first are
        one block. Leaves that match none belong to the block of their module, the second part of their path: the
        kernel `update/Conv_0/kernel` to `Conv_0`.

    Guarantees: the size depends on data (`Sections`) and is at most the inner codec's of all pieces and a bit per
    piece; a piece arrives as the inner codec decodes it or as zeros; every piece has room for itself and as much again.
    Has the inner codec's measures, over all pieces.

    Raises:
      UserError: when the run is set up, if a pattern matches no leaf, naming the nearest path, or if the budget is
        smaller than the smallest piece of a block.
    """
    check_codec(codec)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, at which nothing would be sent; got {dropout!r}")
    patterns = (blocks,) if isinstance(blocks, str) else tuple(blocks)

    def block_of(name):
        matches = (p for p in patterns if fnmatch.fnmatchcase(name, p))
        return ("pattern", pattern) if (pattern := next(matches, None)) else ("module", name.split("/")[:2][-1])

    def split(tree: PyTree) -> tuple[dict[str, Array], dict[str, Array], list[tuple[_pieces.Slice, ...]]]:
        """The float32 leaves, the others, and the pieces of the blocks."""
        named = trees.named_leaves(tree)
        leaves = {name: x for name, x in named.items() if trees.is_float32(x)}
        found: dict = {}
        for name, x in leaves.items():
            found.setdefault(block_of(name), {})[name] = x
        budget = _budget(_shapes(leaves), dropout)
        limit = budget if dropout == 0 else max(1, budget // 2)
        pieces = [piece for block in found.values() for piece in _pieces.cut(block, limit)]
        return leaves, {name: x for name, x in named.items() if name not in leaves}, pieces

    def init(tree):
        names = list(trees.named_leaves(tree))
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                near = suggest(pattern, names)
                raise UserError(f"skip: pattern {pattern!r} matches none of {', '.join(names)}{near}")
        leaves, _, pieces = split(tree)
        shapes = _shapes(leaves)
        largest, budget = _pieces.largest_piece(pieces, shapes), _budget(shapes, dropout)
        if largest > budget:
            raise UserError(
                f"skip: dropout={dropout} leaves room for {budget} of {_total(shapes)} values, too few for a piece of "
                f"{largest}; give a lower dropout"
            )
        return tuple(codec.init(_pieces.take(piece, leaves)) for piece in pieces)

    def encode(key, state, tree):
        leaves, others, pieces = split(tree)
        keep = _greedy([_pieces.take(piece, leaves) for piece in pieces], _budget(_shapes(leaves), dropout))
        messages, states = [], []
        for index, (piece, own) in enumerate(zip(pieces, state, strict=True)):
            message, after = codec.encode(jax.random.fold_in(key, index), own, _pieces.take(piece, leaves))
            messages.append(trees.select(keep[index], message, trees.zeros_like(message)))
            states.append(trees.select(keep[index], after, own))
        sections = Sections(numerics.pack_bits(keep, 1), tuple(messages))
        names = tuple(trees.named_leaves(tree))
        static = tuple(tuple(piece) for piece in pieces), tuple(_shapes(leaves).items())
        return Kept(sections, others, jax.tree.structure(tree), names, *static), tuple(states)

    def decode(state, message):
        sections = message.sections
        keep = numerics.unpack_bits(sections.present, 1, len(sections.parts)).astype(bool)
        decoded = []
        for index, (part, own) in enumerate(zip(sections.parts, state, strict=True)):
            piece = codec.decode(own, part)
            decoded.append(trees.select(keep[index], piece, trees.zeros_like(piece)))
        leaves = _pieces.join(message.pieces, decoded, dict(message.shapes)) | message.others
        return jax.tree.unflatten(message.structure, [leaves[name] for name in message.names])

    def error_bound(tree):
        leaves, others, pieces = split(tree)
        inner = [(codec.error_bound or trees.zeros_like)(_pieces.take(piece, leaves)) for piece in pieces]
        found = _pieces.join(pieces, inner, _shapes(leaves))
        bounds = {name: jnp.maximum(jnp.abs(leaves[name]), x) for name, x in found.items()}
        bounds |= jax.tree.map(jnp.zeros_like, others)
        return jax.tree.unflatten(jax.tree.structure(tree), [bounds[name] for name in trees.named_leaves(tree)])

    bounded = None if codec.error_bound is None else error_bound
    # The first piece of the walk has at least a share of the squared norm that sizes alone bound, and always fits.
    aligned = codec.contracts or codec.unbiased or codec.aligned
    unbiased = codec.unbiased and dropout == 0
    return Codec(init, encode, decode, unbiased, bounded, codec.measure, codec.contracts, aligned)


def _shapes(leaves: dict[str, Array]) -> dict[str, tuple[int, ...]]:
    return {name: x.shape for name, x in leaves.items()}


def _total(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _budget(shapes: dict[str, tuple[int, ...]], dropout: float) -> int:
    """Values that may be sent."""
    # A product such as 0.7 * 10 must not fall below the whole number that it is meant to be.
    return int((1 - dropout) * _total(shapes) * (1 + 1e-12))


def _greedy(pieces: list[dict], budget: int) -> Array:
    """bool `[n]`: which pieces are kept."""
    if not pieces:
        return jnp.zeros(0, bool)
    counts = [sum(x.size for x in piece.values()) for piece in pieces]
    importance = jnp.stack([_norm_per_value(list(p.values()), max(n, 1)) for p, n in zip(pieces, counts, strict=True)])
    sizes = jnp.asarray(counts, jnp.int32)

    def walk(used, piece):
        fits = used + sizes[piece] <= budget
        return jnp.where(fits, used + sizes[piece], used), fits

    order = jnp.argsort(-importance, stable=True)
    _, fits = lax.scan(walk, jnp.int32(0), order)
    return jnp.zeros(len(pieces), bool).at[order].set(fits)


def _norm_per_value(leaves: Sequence[Array], count: int) -> Array:
    """Euclidean norm over the number of values, of values whose squares may leave float32 too."""
    largest = jnp.stack([jnp.max(jnp.abs(x), initial=0.0) for x in leaves]).max()
    unit = jnp.sqrt(sum(jnp.sum(jnp.square(divided(x, largest))) for x in leaves))
    return largest * (unit / count)


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.none import none

    return (
        {"codec": none()},
        {"codec": none(), "dropout": 0.0},
        {"codec": fp8(clip="max", min_ndim=0), "dropout": 0.5, "blocks": ("*/kernel",)},
    )


EXAMPLES = _examples()
