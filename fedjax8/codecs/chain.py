"""Codecs one after another: each encodes the float32 leaves of the message before it; the rest travels as it is.

message = c_n(... c_2(c_1(tree)));      tree^ = d_1(d_2(... d_n(message)))
"""

from collections.abc import Sequence

import jax

from fedjax8 import trees
from fedjax8.codecs.none import as_it_is
from fedjax8.errors import UserError
from fedjax8.keys import random_key
from fedjax8.types import Codec, PyTree, check_codec


def changes_nothing(codec: Codec, state: PyTree, tree: PyTree) -> bool:
    """Whether a codec other than `none` sends every leaf of the tree as it is; shapes suffice."""
    if codec.encode is as_it_is or not any(trees.is_float32(x) and x.size for x in jax.tree.leaves(tree)):
        return False
    message, _ = jax.eval_shape(lambda s, t: codec.encode(random_key(0), s, t), state, tree)
    return bool(trees.shapes(message) == trees.shapes(tree))


def chain(codecs: Sequence[Codec]) -> Codec:
    """Codec that applies `codecs` in order, for example a sparsifier and then a quantizer of the kept values.

    Unbiased if each part is: their randomness is independent. No elementwise bound is stated, and nothing measured, for
    more than one part. More than one part may contract each and yet not together; scaled, they do.

    Raises:
      UserError: when the run is set up, if a part would change nothing, as a quantizer of matrices where none are left.
    """
    if not codecs:
        raise ValueError("chain needs at least one codec")
    for codec in codecs:
        check_codec(codec)

    def init(tree):
        states = []
        for index, codec in enumerate(codecs):
            states.append(codec.init(tree))
            if changes_nothing(codec, states[index], tree):
                left = ", ".join(f"{name} {x.shape}" for name, x in trees.named_leaves(tree).items())
                raise UserError(
                    f"chain: its part {index + 1} of {len(codecs)} changes none of the leaves it gets, {left}; "
                    "leave it out, or let it take these leaves, as with min_ndim=0"
                )
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

    lossy = [codec for codec in codecs if codec.encode is not as_it_is]
    contracts = len(lossy) == 0 or (len(lossy) == 1 and lossy[0].contracts)
    aligned = all(codec.contracts or codec.unbiased or codec.aligned for codec in codecs)
    bound = codecs[0].error_bound if len(codecs) == 1 else None
    measure = codecs[0].measure if len(codecs) == 1 else lambda tree, decoded: {}
    unbiased = all(codec.unbiased for codec in codecs)
    return Codec(init, encode, decode, unbiased, bound, measure, contracts, aligned)


def _examples():
    from fedjax8.codecs.fp8 import fp8
    from fedjax8.codecs.none import none
    from fedjax8.codecs.topk import topk

    return (
        {"codecs": (none(),)},
        {"codecs": (none(), fp8(clip="max", min_ndim=0))},
        {"codecs": (topk(0.3), fp8())},
    )


EXAMPLES = _examples()
