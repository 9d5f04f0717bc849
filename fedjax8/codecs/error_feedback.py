"""Error feedback: a codec's error in one message is added to the next.

    p = x + decay * e;   send c(p);   e <- p - decoded;      with decay 1:  sum of decoded + e = sum of x

Seide et al. (2014), Karimireddy et al. (arXiv 1901.09847: error feedback fixes signSGD). The residual e belongs to the
sender and travels nowhere; the message is the inner codec's. It stays bounded where the inner codec contracts, as both
papers assume; around one whose errors are longer than the tree it would grow exponentially. Such codecs are scaled
down, if that makes them contract, or refused: see `codecs._contraction`.

A client that takes part now and then adds a residual of an older model. `decay` below 1 (this project's
option) lets such residuals fade; 0 forgets them.
"""

from typing import NamedTuple

import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.codecs._contraction import contracting
from fedjax8.codecs._leaves import within
from fedjax8.types import Array, Codec, PyTree


class ErrorFeedbackState(NamedTuple):
    """Memory of a sender."""

    residual: dict[str, Array]
    """e, float32, by path name of the leaf; leaves that are not float32 have none."""
    inner: PyTree
    """The inner codec's state."""


def error_feedback(codec: Codec, decay: float = 1.0) -> Codec:
    """Codec that corrects the past errors of `codec`. For updates.

    Args:
      codec: one that contracts (`Codec.contracts`), usually a biased one, or that does once it is scaled: an unbiased
        one, or `Codec.aligned`. Then a factor for each leaf travels too.
      decay: 0 to 1, the factor of a residual when it is added.

    Guarantees: with decay 1, decoded trees and the residual add up to the trees to be sent, to rounding; the
    residual stays bounded. The size is the inner codec's, and 4 bytes a float32 leaf where factors travel. No single
    message is unbiased.
    Has the inner codec's measures, against the tree that was to be sent.

    Raises:
      ValueError: for a codec around which residuals would grow without end.
    """
    codec = contracting(codec, "error_feedback")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay must be 0 to 1; got {decay!r}")

    def init(tree):
        leaves = trees.named_leaves(tree)
        residual = {name: jnp.zeros(x.shape) for name, x in leaves.items() if trees.is_float32(x)}
        return ErrorFeedbackState(residual, codec.init(tree))

    def encode(key, state, tree):
        memory = state.residual
        wanted = trees.map_named(lambda n, x: within(x + decay * memory[n]) if n in memory else x, tree)
        message, inner = codec.encode(key, state.inner, wanted)
        got = trees.named_leaves(codec.decode(state.inner, message))
        residual = {n: within(x - got[n]) for n, x in trees.named_leaves(wanted).items() if n in memory}
        return message, ErrorFeedbackState(residual, inner)

    def decode(state, message):
        return codec.decode(state.inner, message)

    return Codec(init, encode, decode, False, None, codec.measure)


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.topk import topk

    return (
        {"codec": topk(0.2)},
        {"codec": fp8(rounding="nearest", clip="max", min_ndim=0), "decay": 0.9},
    )


EXAMPLES = _examples()
