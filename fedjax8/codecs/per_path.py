"""A codec per part of the tree, chosen by path pattern: embeddings in 4 bits, norms in float32, the rest in 8.

A message is the tuple of the parts' messages, in the order of the rules, then the default's.
"""

import fnmatch
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import trees
from fedjax8.codecs.chain import changes_nothing
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.types import Codec, PyTree, check_codec


@struct.dataclass
class MessagesByPath:
    """Messages of the parts. Structure and names of the tree they came from are static: both sides know them."""

    messages: tuple[PyTree, ...]
    structure: Any = struct.field(pytree_node=False)
    names: tuple[str, ...] = struct.field(pytree_node=False)


def per_path(rules: Mapping[str, Codec], default: Codec) -> Codec:
    """Codec that gives each leaf to the codec of the first matching pattern, or to `default`.

    Args:
      rules: shell-style patterns on path names, such as `params/*/bias` or `*kernel`, to codecs. A clip goes with its
        kernel when its pattern also matches `kernel_clip`.
      default: for leaves that match nothing.

    Raises:
      UserError: when the run is set up, if a pattern matches no leaf, naming the nearest path, or if its codec would
        change none of the leaves that it is given, as a quantizer of matrices given biases.
    """
    patterns, codecs = tuple(rules), (*rules.values(), default)
    for codec in codecs:
        check_codec(codec)

    def split(tree: PyTree) -> list[dict]:
        parts: list[dict] = [{} for _ in codecs]
        for name, leaf in trees.named_leaves(tree).items():
            matches = (i for i, p in enumerate(patterns) if fnmatch.fnmatchcase(name, p))
            parts[next(matches, len(patterns))][name] = leaf
        return parts

    def init(tree):
        names = list(trees.named_leaves(tree))
        for pattern in patterns:
            if not fnmatch.filter(names, pattern):
                raise UserError(
                    f"per_path: pattern {pattern!r} matches none of {', '.join(names)}{suggest(pattern, names)}"
                )
        parts = split(tree)
        states = tuple(codec.init(part) for codec, part in zip(codecs, parts, strict=True))
        for pattern, codec, state, part in zip(patterns, codecs, states, parts, strict=False):
            if changes_nothing(codec, state, part):
                raise UserError(
                    f"per_path: the codec of pattern {pattern!r} changes nothing of {', '.join(part)}; give none() for "
                    "these leaves, or let it take them, as with min_ndim=0"
                )
        return states

    def encode(key, state, tree):
        keys = jax.random.split(key, len(codecs))
        done = [c.encode(k, s, p) for c, k, s, p in zip(codecs, keys, state, split(tree), strict=True)]
        messages, states = zip(*done, strict=True)
        return MessagesByPath(messages, jax.tree.structure(tree), tuple(trees.named_leaves(tree))), states

    def join(parts, structure, names):
        leaves = {name: leaf for part in parts for name, leaf in part.items()}
        return jax.tree.unflatten(structure, [leaves[name] for name in names])

    def decode(state, message):
        parts = [codec.decode(s, m) for codec, s, m in zip(codecs, state, message.messages, strict=True)]
        return join(parts, message.structure, message.names)

    def error_bound(tree):
        bounds = [(c.error_bound or trees.zeros_like)(part) for c, part in zip(codecs, split(tree), strict=True)]
        return join(bounds, jax.tree.structure(tree), trees.named_leaves(tree))

    def measure(tree, decoded):
        parts = zip(codecs, split(tree), split(decoded), strict=True)
        total: dict = {}
        for found in (codec.measure(part, got) for codec, part, got in parts):
            total |= {n: jax.tree.map(jnp.add, total[n], r) if n in total else r for n, r in found.items()}
        return total

    bounded = all(codec.error_bound is not None for codec in codecs)
    unbiased = all(codec.unbiased for codec in codecs)
    contracts = all(codec.contracts for codec in codecs)
    aligned = all(codec.contracts or codec.unbiased or codec.aligned for codec in codecs)
    return Codec(init, encode, decode, unbiased, error_bound if bounded else None, measure, contracts, aligned)


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.none import none

    return ({"rules": {"*": fp8(min_ndim=0)}, "default": none()}, {"rules": {"*a*": none()}, "default": fp8()})


EXAMPLES = _examples()
