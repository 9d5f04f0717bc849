"""Codebook messages: each weight as the number of its cluster, and the value of every cluster.

    (z, a) = k-means(x, C);      x^_i = z[a_i],   the nearest value of the codebook

The full message of FedCode (Khalilian et al., arXiv 2311.09270), whose authors' code clusters all entries of a model
together. Which leaves keep their float32 values is this project's choice: batch statistics (the top-level entry
`state`), since a running variance can land near zero and counters stretch the range; and clips, which are scales.

Message layout: per codebook C float32 values, ascending, then N cluster numbers in ceil(log2 C) bits each, packed, so
ceil(N * ceil(log2 C) / 8) + 4 C bytes; other leaves as they are.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from fedjax8 import numerics, trees
from fedjax8.codecs import _flat
from fedjax8.codecs._leaves import TINY
from fedjax8.numerics import kmeans
from fedjax8.types import Array, Codec, PyTree

STATE = "state"
"""The top-level entry that holds batch statistics."""


@struct.dataclass
class Clustered:
    """A message; one entry in `codebooks` and `labels` for the model, or for each tensor."""

    codebooks: tuple[Array, ...]
    """float32 `[C]`, ascending."""
    labels: tuple[Array, ...]
    """uint8: packed numbers of the clusters."""
    others: tuple[PyTree, ...]
    """Leaves that pass through."""
    layout: _flat.Layout = struct.field(pytree_node=False)


class Clustering(NamedTuple):
    """Functions that cluster the values of a tree."""

    codebooks: Callable[[PyTree], tuple[Array, ...]]
    """A tree to its codebooks, float32 `[C]` each, ascending: one, or one for each tensor."""
    snap: Callable[[PyTree, tuple[Array, ...]], PyTree]
    """`(tree, codebooks of any lengths) -> tree` of the nearest values; leaves that are not clustered stay."""
    choose: Callable[[PyTree], Callable[[str, Array], bool]]
    """A tree to whether its leaf of that path is clustered; shapes suffice."""


def clustering(clusters: int = 64, *, scope: str = "model", cluster_state: bool = False) -> Clustering:
    """The clustering of `codebook` with these settings."""
    if not 2 <= clusters <= 256:
        raise ValueError(f"clusters must be 2 to 256; got {clusters!r}")
    _flat.check_scope(scope)

    bits = (clusters - 1).bit_length()

    def may(name, x):
        return trees.is_float32(x) and not trees.is_clip(name) and (name.split("/")[0] != STATE or cluster_state)

    def pays(size):
        return numerics.packed_size(size, bits) + 4 * clusters < 4 * size

    def choose(tree):
        total = sum(x.size for name, x in trees.named_leaves(tree).items() if may(name, x))
        return lambda name, x: may(name, x) and pays(total if scope == "model" else x.size)

    def codebooks(tree):
        return tuple(kmeans.kmeans(x, clusters) for x in _flat.flatten(tree, scope, choose(tree))[0])

    def snap(tree, books):
        vectors, others, layout = _flat.flatten(tree, scope, choose(tree))
        snapped = [kmeans.snap(x, book) for x, book in zip(vectors, books, strict=True)]
        return _flat.unflatten(snapped, others, layout)

    return Clustering(codebooks, snap, choose)


def codebook(clusters: int = 64, *, scope: str = "model", cluster_state: bool = False) -> Codec:
    """Codec that sends cluster numbers and a codebook.

    Args:
      clusters: C, 2 to 256.
      scope: `model`, one codebook for all tensors, as published; `tensor`, one for each. Where labels and codebook
        would be no smaller than the values (for C = 64, fewer than 79 of them), these stay float32.
      cluster_state: whether the top-level entry `state` is clustered too, as in the authors' code.

    Guarantees: fixed size; deterministic; every value goes to the nearest one in the codebook, the lower of two as
    near; with at most C distinct values exact.
    Measures `quantization_error`.
    """
    bits = (clusters - 1).bit_length()
    choose = clustering(clusters, scope=scope, cluster_state=cluster_state).choose

    def encode(key, state, tree):
        vectors, others, layout = _flat.flatten(tree, scope, choose(tree))
        codebooks = tuple(kmeans.kmeans(x, clusters) for x in vectors)
        labels = tuple(numerics.pack_bits(kmeans.assign(x, z), bits) for x, z in zip(vectors, codebooks, strict=True))
        return Clustered(codebooks, labels, others, layout), state

    def decode(state, message):
        sizes = _flat.group_sizes(message.layout)
        vectors = [
            z[numerics.unpack_bits(packed, bits, size)]
            for size, z, packed in zip(sizes, message.codebooks, message.labels, strict=True)
        ]
        return _flat.unflatten(vectors, message.others, message.layout)

    def error_bound(tree):
        """Half the gap of the codebook in which x lies; outside of it, the distance to its end."""
        vectors, others, layout = _flat.flatten(tree, scope, choose(tree))
        bounds = []
        for x in vectors:
            z = kmeans.kmeans(x, clusters)
            at = jnp.clip(jnp.searchsorted(z, x), 1, clusters - 1)
            beyond = jnp.maximum(z[0] - x, 0.0) + jnp.maximum(x - z[-1], 0.0)
            # Halves of values near the smallest normal number are lost, and which of them is nearest with them.
            bounds.append(jnp.where(beyond > 0, beyond, 0.5 * z[at] - 0.5 * z[at - 1]) + 4 * TINY)
        return _flat.unflatten(bounds, jax.tree.map(jnp.zeros_like, others), layout)

    return Codec(lambda tree: (), encode, decode, False, error_bound, _flat.squared_error, contracts=True)


EXAMPLES = ({"clusters": 8}, {"clusters": 4, "scope": "tensor"}, {"clusters": 5, "cluster_state": True})
