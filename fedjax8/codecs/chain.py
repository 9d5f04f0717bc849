"""Codecs one after another: each encodes the float32 leaves of the message before it; the rest travels as it is.

message = c_n(... c_2(c_1(tree)));      tree^ = d_1(d_2(... d_n(message)))
"""

from collections.abc import Sequence

import jax

from fedjax8.keys import random_key
from fedjax8.types import Codec, check_codec


def chain(codecs: Sequence[Codec]) -> Codec:
    """Codec that applies `codecs` in order, for example a sparsifier and then a quantizer of the kept values.

    Unbiased if each part is: their randomness is independent. No elementwise bound is stated, and nothing measured, for
    more than one part.
    """
    if not codecs:
        raise ValueError("chain needs at least one codec")
    for codec in codecs:
        check_codec(codec)

    def init(tree):
        states = []
        for index, codec in enumerate(codecs):
            states.append(codec.init(tree))
            tree, _ = jax.eval_shape(lambda t, c=codec, s=states[index]: c.encode(random_key(0), s, t), tree)
        return tuple(states)

    def encode(key, state, tree):
        new = []
        for index, (codec, own) in enumerate(zip(codecs, state, strict=True)):
            tree, own = codec.encode(jax.random.fold_in(key, index), own, tree)
            new.append(own)
        return tree, tuple(new)

    def decode(state, message):
        for codec, own in reversed(list(zip(codecs, state, strict=True))):
            message = codec.decode(own, message)
        return message

    bound = codecs[0].error_bound if len(codecs) == 1 else None
    measure = codecs[0].measure if len(codecs) == 1 else lambda tree, decoded: {}
    return Codec(init, encode, decode, all(codec.unbiased for codec in codecs), bound, measure)


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.none import none

    return ({"codecs": (none(),)}, {"codecs": (none(), fp8(clip="max", min_ndim=0))})


EXAMPLES = _examples()
