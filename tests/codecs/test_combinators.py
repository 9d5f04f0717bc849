"""`chain` and `per_path`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.chain import chain
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.codecs.topk import topk
from fedjax8.codecs.uniform import uniform
from fedjax8.errors import UserError
from fedjax8.types import Codec

TREE = {"params": {"dense": {"kernel": jnp.linspace(-1, 1, 12).reshape(3, 4), "bias": jnp.ones(4)}}}


def halve() -> Codec:
    """Keeps every other value of each leaf, flattened: a stand-in for a sparsifier."""
    return Codec(
        init=lambda tree: (),
        encode=lambda key, state, tree: (jax.tree.map(lambda x: x.reshape(-1)[::2], tree), state),
        decode=lambda state, message: jax.tree.map(lambda x: jnp.repeat(x, 2), message),
        unbiased=False,
    )


def test_a_chain_quantizes_what_the_sparsifier_kept():
    codec = chain([halve(), fp8(min_ndim=1)])
    message, _ = codec.encode(jax.random.key(0), codec.init(TREE), TREE)
    assert trees.num_bytes(message) == (6 + 4) + (2 + 4)
    kernel = codec.decode(codec.init(TREE), message)["params"]["dense"]["kernel"]
    kept = np.linspace(-1, 1, 12)[::2]
    np.testing.assert_allclose(kernel[::2], kept, atol=2.0**-3)  # the widest step of the grid at clip 1


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        chain([])


def test_a_part_that_would_change_nothing_is_refused():
    """What `halve` keeps are vectors, which a quantizer of matrices passes by."""
    with pytest.raises(UserError, match=r"its part 2 of 2 changes none.*kernel \(6,\).*min_ndim=0"):
        chain([halve(), fp8()]).init(TREE)
    with pytest.raises(UserError, match="its part 1 of 2 changes none"):
        chain([uniform(min_size=100), topk(0.5)]).init(TREE)
    with pytest.raises(UserError, match=r"pattern '\*bias' changes nothing of params/dense/bias.*min_ndim=0"):
        per_path({"*bias": uniform(4)}, none()).init(TREE)
    chain([none(), topk(0.5)]).init(TREE)  # `none` is asked for by name
    per_path({"*bias": uniform(4, min_ndim=1), "*kernel": none()}, fp8()).init(TREE)


@pytest.mark.parametrize("quantizer", [uniform(4), fp8(), fp8(clip="max")], ids=["uniform", "fp8", "fp8 max"])
def test_a_quantizer_encodes_what_a_sparsifier_kept_with_its_usual_settings(quantizer):
    tree = {"update": {"kernel": jnp.linspace(-1, 1, 500).reshape(20, 25)}}
    codec = chain((topk(0.1), quantizer))
    message = jax.eval_shape(lambda t: codec.encode(jax.random.key(0), codec.init(t), t)[0], tree)
    bits = 4 if message.values[0].codes.dtype == jnp.uint8 else 8
    assert trees.num_bytes(message) == 50 * bits // 8 + 4 + -(-50 * 9 // 8)  # values, their scale, positions


def test_per_path_sends_each_leaf_through_its_own_codec():
    codec = per_path({"params/*/bias": none()}, fp8(min_ndim=0))
    message, _ = codec.encode(jax.random.key(0), codec.init(TREE), TREE)
    assert trees.num_bytes(message) == 4 * 4 + (12 + 4)
    np.testing.assert_array_equal(codec.decode(codec.init(TREE), message)["params"]["dense"]["bias"], np.ones(4))


def test_the_first_matching_pattern_wins():
    codec = per_path({"*kernel": none(), "*": fp8(min_ndim=0)}, none())
    message, _ = codec.encode(jax.random.key(0), codec.init(TREE), TREE)
    assert trees.num_bytes(message) == 12 * 4 + (4 + 4)


def test_a_pattern_that_matches_nothing_is_an_error_with_the_nearest_path():
    with pytest.raises(UserError, match=r"params/dense/kernal.*did you mean 'params/dense/kernel'"):
        per_path({"params/dense/kernal": none()}, none()).init(TREE)


def test_a_message_can_cross_a_jit_boundary():
    codec = per_path({"*bias": none()}, fp8())
    message = jax.jit(lambda k: codec.encode(k, codec.init(TREE), TREE)[0])(jax.random.key(0))
    assert jax.tree.structure(jax.jit(codec.decode)(codec.init(TREE), message)) == jax.tree.structure(TREE)


def test_a_chain_of_one_measures_what_its_codec_does():
    alone, chained = fp8(clip="max"), chain([fp8(clip="max")])
    decoded = jax.tree.map(lambda x: 0.5 * x, TREE)
    assert {n: tuple(map(float, r)) for n, r in chained.measure(TREE, decoded).items()} == {
        "clipped_fraction": (0.0, 12.0),
        "quantization_error": tuple(map(float, alone.measure(TREE, decoded)["quantization_error"])),
    }
    assert chain([none(), fp8(clip="max")]).measure(TREE, decoded) == {}
