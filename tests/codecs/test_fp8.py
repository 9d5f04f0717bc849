"""FP8 messages: layout, bytes, learned clips."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.adapters.ptq import ptq
from fedjax8.adapters.qat import qat
from fedjax8.algorithms.refinements.uq_plus import uq_plus
from fedjax8.codecs.fp8 import fp8
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.models.logistic import logistic

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


@pytest.mark.parametrize("format", [None, "e4m3fnuz", "e5m2"])
def test_codes_are_native_8_bit_floats_e4m3fn_by_default(format):
    message = encode(fp8(format), model_tree())
    assert message["params"]["a"]["kernel"].codes.dtype == getattr(ml_dtypes, f"float8_{format or 'e4m3fn'}")


def test_a_tree_without_clips_carries_the_largest_magnitude_of_each_matrix():
    tree = {"update": {"kernel": jnp.asarray([[0.5, -3.0]]), "bias": jnp.asarray([1.0])}}
    message = encode(fp8(), tree)
    assert float(message["update"]["kernel"].clip) == 3.0
    assert trees.num_bytes(message) == 2 + 4 + 4


def test_in_a_tree_of_updates_a_clip_is_a_number_and_not_a_scale():
    update = {"update": {"kernel": jnp.asarray([[0.5, -3.0]]), "kernel_clip": jnp.asarray(-0.25)}}
    message = encode(fp8(), update)
    decoded = fp8().decode((), message)
    assert float(message["update"]["kernel"].clip) == 3.0
    assert float(decoded["update"]["kernel_clip"]) == -0.25


@pytest.mark.parametrize("rounding", ["stochastic", "nearest"])
def test_values_on_the_grid_of_their_clip_keep_their_codes(rounding):
    codec = fp8(rounding=rounding)
    message = encode(codec, model_tree())
    once = codec.decode((), message)
    for seed in range(3):
        again = encode(codec, once, jax.random.key(seed))
        for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(message), strict=True):
            np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_different_leaves_draw_different_dithers():
    kernel = jnp.full((40, 40), 0.51).at[0, 0].set(1.0)
    tree = {"params": {"a": {"kernel": kernel}, "b": {"kernel": kernel}}}
    decoded = fp8().decode((), encode(fp8(), tree))["params"]
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


# A learned clip that its tensor has outgrown.


def outgrown_tree():
    """Both kernels have weights beyond their clips."""
    tree = model_tree()
    for layer in tree["params"].values():
        layer["kernel_clip"] = 0.4 * layer["kernel_clip"]
    return tree


def send(codec, tree, key=KEY):
    return codec.decode((), encode(codec, tree, key))


def test_a_raised_clip_is_sent_in_the_place_of_the_learned_one_and_costs_no_byte():
    tree, inside = outgrown_tree(), model_tree()
    inside["params"]["a"]["kernel_clip"] = jnp.float32(9.0)  # beyond every weight: stays as it is
    for given in (tree, inside):
        raised, learned = encode(fp8(clip="raised"), given), encode(fp8(), given)
        assert trees.num_bytes(raised) == trees.num_bytes(learned)
        assert jax.tree.structure(raised) == jax.tree.structure(learned)
        for name, layer in given["params"].items():
            largest = np.abs(layer["kernel"]).max()
            assert float(raised["params"][name]["kernel_clip"]) == max(float(layer["kernel_clip"]), largest)
            assert float(raised["params"][name]["input_clip"]) == 2.0


def test_a_raised_clip_clips_nothing_and_the_mean_over_keys_is_the_weight_itself():
    """2000 draws, 4.5 standard errors of at most step / 2; a learned clip misses what lies beyond it."""
    tree, count = outgrown_tree(), 2000
    keys = jax.random.split(KEY, count)
    for clip, unbiased in (("raised", True), ("learned", False)):
        codec = fp8(clip=clip)
        draws = jax.jit(jax.vmap(lambda key, codec=codec: send(codec, tree, key)["params"]))(keys)
        for name, layer in tree["params"].items():
            kernel, alpha = np.float64(layer["kernel"]), float(layer["kernel_clip"])
            assert (np.abs(kernel) > alpha).any()
            step = np.maximum(np.abs(kernel) / 8, np.abs(kernel).max() * 2.0**-17 / 1.75)
            mean = np.float64(draws[name]["kernel"]).mean(0)
            close = np.abs(mean - kernel) <= 4.5 * step / 2 / np.sqrt(count) + 2.0**-18 * np.abs(kernel)
            np.testing.assert_array_equal(close, np.full(kernel.shape, True) if unbiased else np.abs(kernel) <= alpha)


def test_raising_changes_no_tree_without_learned_clips():
    tree = {"update": {"kernel": jnp.asarray([[0.5, -3.0]]), "kernel_clip": jnp.asarray(0.25)}}
    for a, b in zip(jax.tree.leaves(send(fp8(), tree)), jax.tree.leaves(send(fp8(clip="raised"), tree)), strict=True):
        np.testing.assert_array_equal(a, b)


# Edges.


@pytest.mark.parametrize("clip", ["learned", "raised", "max"])
@pytest.mark.parametrize("kernel", [[[0.5, -3.0]], [[0.0, 0.0]]], ids=["nonzero", "zero"])
def test_a_clip_of_zero_is_floored(clip, kernel):
    """Learnt as zero it stands for 1e-8, the smallest there is; otherwise the largest magnitude takes its place."""
    tree = {"params": {"kernel": jnp.asarray(kernel), "kernel_clip": jnp.float32(0)}}
    codec = fp8(clip=clip)
    decoded = send(codec, tree)["params"]
    limit = 1e-8 if clip == "learned" else 3.0
    np.testing.assert_allclose(decoded["kernel"], np.clip(kernel, -limit, limit), rtol=2.0**-3)
    largest = np.abs(kernel).max()
    assert float(decoded["kernel_clip"]) == np.float32(max(largest, 1e-8) if clip == "raised" else 0.0)
    measured = codec.measure(tree, send(codec, tree))
    assert float(measured["clipped_fraction"].part) == (2 if clip == "learned" and largest else 0)
    assert bool(trees.all_finite(measured))


@pytest.mark.parametrize("clip", ["learned", "raised", "max"])
def test_empty_tensors_are_sent_and_measured(clip):
    tree = {"params": {"kernel": jnp.zeros((0, 3)), "kernel_clip": jnp.float32(0.5)}}
    codec = fp8(clip=clip)
    decoded = send(codec, tree)["params"]
    assert (decoded["kernel"].shape, float(decoded["kernel_clip"])) == ((0, 3), 0.5)
    for ratio in codec.measure(tree, {"params": decoded}).values():
        assert [float(x) for x in ratio] == [0.0, 0.0]


@pytest.mark.parametrize(
    "make", [fp8, uq_plus, lambda format: qat(logistic(), format), lambda format: ptq(logistic(), format)]
)
def test_an_unknown_format_is_named_with_those_known_and_the_nearest(make):
    message = r"unknown number format 'e5m3'; known are e4m3fn, e4m3fnuz, e5m2; did you mean 'e5m2'\?"
    with pytest.raises(ValueError, match=message):
        make(format="e5m3")


# What it measures.


def hand_made():
    """A tree and what it might be decoded to: two of six weights beyond their clips, and whole numbers as errors."""

    def tree(a, b, bias):
        kernels = {"a": jnp.float32([a]), "b": jnp.float32([b])}
        clips = {"a": jnp.float32(2), "b": jnp.float32(5)}
        return {"params": {n: {"kernel": k, "kernel_clip": clips[n], "bias": bias} for n, k in kernels.items()}}

    return tree([1, -3, 2, 4], [5, -1], jnp.ones(1)), tree([1, -2, 2, 2], [4, -1], 7 * jnp.ones(1))


def test_what_is_measured_by_hand():
    """Beyond the clip: -3 and 4 of six. Errors 1, 2, 1, squared 6; squared weights 1 + 9 + 4 + 16 + 25 + 1 = 56."""
    measured = fp8().measure(*hand_made())
    assert {n: (float(r.part), float(r.whole)) for n, r in measured.items()} == {
        "clipped_fraction": (2, 6),
        "quantization_error": (6, 56),
    }
    for clip in ("max", "raised"):
        assert [float(x) for x in fp8(clip=clip).measure(*hand_made())["clipped_fraction"]] == [0, 6]


def test_it_measures_the_same_under_jit_and_for_each_of_several_clients():
    tree, decoded = hand_made()
    alone = fp8().measure(tree, decoded)
    twice = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), (tree, decoded))
    batched = jax.jit(jax.vmap(fp8().measure))(*twice)
    for name, ratio in jax.jit(fp8().measure)(tree, decoded).items():
        assert [float(x) for x in ratio] == [float(x) for x in alone[name]]
        factors = (1, 1) if name == "clipped_fraction" else (4, 4)  # everything doubled, so squares fourfold
        for whole, one, factor in zip(batched[name], alone[name], factors, strict=True):
            np.testing.assert_array_equal(whole, [float(one), factor * float(one)])


def test_a_tree_without_anything_to_quantize_measures_nothing():
    tree = {"params": {"bias": jnp.ones(3)}}
    assert fp8().measure(tree, tree) == {}


def test_parts_add_up_what_their_codecs_measure():
    """Each kernel in a part of its own gives what both give together; a part that measures nothing adds nothing."""
    tree, decoded = hand_made()
    whole = {n: (float(r.part), float(r.whole)) for n, r in fp8().measure(tree, decoded).items()}
    split = per_path({"params/a/*": fp8(), "*bias": none()}, fp8(rounding="nearest")).measure(tree, decoded)
    assert {n: (float(r.part), float(r.whole)) for n, r in split.items()} == whole
    only_a = per_path({"params/b/*": none()}, fp8()).measure(tree, decoded)
    assert [float(x) for x in only_a["clipped_fraction"]] == [2, 4]
    assert [float(x) for x in only_a["quantization_error"]] == [5, 30]
    assert per_path({"*": none()}, fp8()).measure(tree, decoded) == {}
