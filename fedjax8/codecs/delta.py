"""Differences to the receiver's copy: a codec for models that change little from message to message.

    send c(x - r);   x^ = r + decoded;   r <- x^ on both sides, zero at first

Differences between successive models, as in DIANA (Mishchenko et al., arXiv 1901.09269, with step 1) and EF21
(Richtarik et al., arXiv 2106.05203). The first message carries the whole model, by way of the inner codec. Since the
next difference is taken to the decoded tree, errors do not add up, and entries that a biased codec left out come again:
around a codec that contracts. The message contracts x - r and not x, so that no other memory fits around it.

Both sides keep r: `decode` is given the state that `encode` was given. A receiver needs every message. As a downlink
codec with cohorts that change, this assumes that clients out of the cohort listen too, while the byte count
has the messages to the cohort alone.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from fedjax8 import trees
from fedjax8.codecs._contraction import contracting
from fedjax8.codecs._leaves import within
from fedjax8.types import Array, Codec, PyTree


class DeltaState(NamedTuple):
    """Memory of both sides."""

    reference: dict[str, Array]
    """r, float32, by path name of the leaf; leaves that are not float32 have none."""
    inner: PyTree
    """The inner codec's state."""


def delta(codec: Codec) -> Codec:
    """Codec that sends differences to the last decoded tree through `codec`.

    A clip's difference is no scale: with trees that hold learned clips use `fp8(clip="max")` inside.

    Args:
      codec: one that contracts, or does once it is scaled, as for `error_feedback`; then a factor for each leaf travels
        too. Around any other the reference would run away from the tree.

    Guarantees: the size is the inner codec's, and 4 bytes a float32 leaf where factors travel; unbiased, given the
    reference, if the inner codec is unbiased and contracts; the reference after a message is exactly the tree that was
    decoded.
    Has the inner codec's measures, on trees instead of differences.

    Raises:
      ValueError: for a codec that does not contract, such as `error_feedback`, which would make up for the same loss.
    """
    codec = contracting(codec, "delta")

    def init(tree):
        leaves = trees.named_leaves(tree)
        reference = {name: jnp.zeros(x.shape) for name, x in leaves.items() if trees.is_float32(x)}
        return DeltaState(reference, codec.init(tree))

    def moved(reference, change):
        # The barrier keeps the addition from being fused with the inner decoder's arithmetic, which could round it in
        # another way in the sender's program than in the receiver's.
        change = lax.optimization_barrier(change)
        return trees.map_named(lambda n, x: within(reference[n] + x) if n in reference else x, change)

    def encode(key, state, tree):
        known = state.reference
        change = trees.map_named(lambda n, x: within(x - known[n]) if n in known else x, tree)
        message, inner = codec.encode(key, state.inner, change)
        new = trees.named_leaves(moved(state.reference, codec.decode(state.inner, message)))
        return message, DeltaState({name: new[name] for name in state.reference}, inner)

    def decode(state, message):
        return moved(state.reference, codec.decode(state.inner, message))

    return Codec(init, encode, decode, codec.unbiased, None, codec.measure)


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.topk import topk

    return ({"codec": fp8(clip="max", min_ndim=0)}, {"codec": topk(0.3)})


EXAMPLES = _examples()
