"""FP8 messages: layout, bytes, learnt clips."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.fp8 import fp8

KEY = jax.random.key(0)


def model_tree():
    """Two layers as the qat adapter makes them."""
    rng = np.random.default_rng(1)

    def one(n, m):
        kernel = jnp.asarray(rng.standard_normal((n, m)), jnp.float32)
        return {"kernel": kernel, "bias": jnp.ones(m), "kernel_clip": jnp.max(jnp.abs(kernel)), "input_clip": 2.0}

    return jax.tree.map(jnp.asarray, {"params": {"a": one(6, 5), "b": one(5, 3)}})


def encode(codec, tree, key=KEY):
    return codec.encode(key, codec.init(tree), tree)[0]


def test_a_quantized_leaf_costs_one_byte_a_weight_and_four_for_its_clip():
    message = encode(fp8(), model_tree())
    weights, biases, activations = 6 * 5 + 5 * 3, 5 + 3, 2
    assert trees.num_bytes(message) == (weights + 2 * 4) + 4 * biases + 4 * activations


def test_codes_are_native_8_bit_floats_of_the_papers_grid():
    message = encode(fp8(), model_tree())
    assert message["params"]["a"]["kernel"].codes.dtype == ml_dtypes.float8_e4m3fnuz


def test_a_tree_without_clips_carries_the_largest_magnitude_of_each_matrix():
    tree = {"update": {"kernel": jnp.asarray([[0.5, -3.0]]), "bias": jnp.asarray([1.0])}}
    message = encode(fp8(), tree)
    assert float(message["update"]["kernel"].clip) == 3.0
    assert trees.num_bytes(message) == 2 + 4 + 4


def test_in_a_tree_of_updates_a_clip_is_a_number_and_not_a_scale():
    update = {"update": {"kernel": jnp.asarray([[0.5, -3.0]]), "kernel_clip": jnp.asarray(-0.25)}}
    message = encode(fp8(), update)
    decoded = fp8().decode(message)
    assert float(message["update"]["kernel"].clip) == 3.0
    assert float(decoded["update"]["kernel_clip"]) == -0.25


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_values_on_the_grid_of_their_clip_keep_their_codes(rounding):
    codec = fp8(rounding=rounding)
    message = encode(codec, model_tree())
    once = codec.decode(message)
    for seed in range(3):
        again = encode(codec, once, jax.random.key(seed))
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(message), strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_different_leaves_draw_different_dithers():
    kernel = jnp.full((40, 40), 0.51).at[0, 0].set(1.0)
    tree = {"params": {"a": {"kernel": kernel}, "b": {"kernel": kernel}}}
    decoded = fp8().decode(encode(fp8(), tree))["params"]
    assert np.any(np.asarray(decoded["a"]["kernel"] != decoded["b"]["kernel"]))


@pytest.mark.parametrize(
    ("settings", "word"),
    [({"format": "e4m3"}, "e4m3"), ({"rounding": "up"}, "up"), ({"clip": "min"}, "min")],
)
def test_bad_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        fp8(**settings)


def test_entries_without_clips_beside_parameters_with_clips_are_quantized_by_magnitude():
    tree = model_tree() | {"extra": {"control": {"kernel": jnp.asarray([[0.5, -3.0]]), "bias": jnp.ones(2)}}}
    message = encode(fp8(), tree)
    assert float(message["extra"]["control"]["kernel"].clip) == 3.0
    assert trees.num_bytes(message) == trees.num_bytes(encode(fp8(), model_tree())) + (2 + 4) + 2 * 4


def test_a_large_parameter_without_a_clip_among_those_with_clips_stays_float32():
    """Class tokens and positional embeddings of a quantization-aware model."""
    tree = model_tree()
    tree["params"]["embedding"] = jnp.ones((3, 4))
    assert encode(fp8(), tree)["params"]["embedding"].dtype == jnp.float32
