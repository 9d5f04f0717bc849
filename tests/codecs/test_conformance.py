"""Every codec file, found by itself, on every one of its examples: what `types.Codec` promises."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.lookup import component_names
from fedjax8.types import Sections

PACKAGE = "fedjax8.codecs"


def cases(package=PACKAGE):
    """(id, codec) of every example of every codec in the package."""
    for name in component_names(package):
        module = importlib.import_module(f"{package}.{name}")
        for index, settings in enumerate(module.EXAMPLES):
            yield f"{name}-{index}", getattr(module, name)(**settings)


CODECS = dict(cases())

# Codecs that add up rotated values, in an order that is XLA's choice and not the same for one client as for many.
SUMMING = ("drive", "eden", "rotated")


@pytest.fixture(params=CODECS)
def name(request):
    return request.param


@pytest.fixture
def codec(name):
    return CODECS[name]


def layer(kernel, bias=None, clips=True):
    """A tree as the qat adapter makes them, or without clips."""
    kernel = jnp.asarray(kernel, jnp.float32)
    clip = {"kernel_clip": jnp.maximum(jnp.max(jnp.abs(kernel), initial=0.0), 1e-8)} if clips else {}
    bias = jnp.zeros(3) if bias is None else jnp.asarray(bias, jnp.float32)
    return {"params": {"layer": {"kernel": kernel, "bias": bias, **clip}}}


def trees_to_try():
    """Of as few shapes as possible: each codec is compiled for each."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((7, 5))
    small = {"one": layer(np.full((1, 1), -0.3), np.full(1, 2.0)), "none": layer(np.zeros((0, 3)))}
    return {
        "normal": layer(normal, rng.standard_normal(3)),
        "zero": layer(np.zeros((7, 5))),
        "constant": layer(np.full((7, 5), 0.7)),
        "huge": layer(1e30 * normal),
        "tiny": layer(1e-30 * normal),
        "no_clips": layer(normal, rng.standard_normal(3), clips=False) | {"step": jnp.arange(6).reshape(2, 3)},
        "one_element_and_empty": {"params": {name: tree["params"]["layer"] for name, tree in small.items()}},
    }


TREES = trees_to_try()


@functools.cache
def compiled(name):
    """`(key, tree) -> (message, what it decodes to, the stated bound or None)`."""
    codec = CODECS[name]

    @jax.jit
    def run(key, tree):
        state = codec.init(tree)
        message, _ = codec.encode(key, state, tree)
        return message, codec.decode(state, message), codec.error_bound and codec.error_bound(tree)

    return run


@functools.cache
def exchange(name, which, seed=0):
    """The message of one of the trees, what it decodes to, and the bound."""
    return compiled(name)(jax.random.key(seed), TREES[which])


@pytest.fixture(params=TREES)
def which(request):
    return request.param


def test_decoding_gives_back_the_structure_shapes_and_dtypes(name, which):
    _, decoded, _ = exchange(name, which)
    tree = TREES[which]
    assert jax.tree.structure(decoded) == jax.tree.structure(tree)
    for got, sent in zip(jax.tree.leaves(decoded), jax.tree.leaves(tree), strict=True):
        assert (got.shape, got.dtype) == (sent.shape, sent.dtype)


def test_what_is_decoded_is_finite(name, which):
    """Of zero, constant, huge, tiny, one-element and empty leaves alike."""
    assert bool(trees.all_finite(exchange(name, which)[1]))


def test_the_error_stays_within_the_stated_bound(name, codec, which):
    if codec.error_bound is None:
        pytest.skip("no elementwise bound is stated")
    for seed in range(3):
        _, decoded, bound = exchange(name, which, seed)
        for got, sent, most in zip(*map(jax.tree.leaves, (decoded, TREES[which], bound)), strict=True):
            # one part in 2**20 for the float32 arithmetic of scaling there and back
            limit = np.asarray(most, np.float64) + 2.0**-20 * np.abs(np.asarray(sent, np.float64))
            assert np.all(np.abs(np.asarray(got, np.float64) - np.asarray(sent, np.float64)) <= limit)


def test_an_unbiased_codec_is_right_on_average(codec):
    if not codec.unbiased:
        pytest.skip("not stated to be unbiased")
    # Nothing lies beyond 2.5 standard deviations, where it might be clipped.
    kernel, draws = jnp.clip(TREES["normal"]["params"]["layer"]["kernel"], -1.8, 1.8), 4000
    tree = layer(kernel, TREES["normal"]["params"]["layer"]["bias"])
    state = codec.init(tree)
    keys = jax.random.split(jax.random.key(1), draws)
    samples = jax.jit(jax.vmap(lambda k: codec.decode(state, codec.encode(k, state, tree)[0])))(keys)
    for got, sent in zip(jax.tree.leaves(samples), jax.tree.leaves(tree), strict=True):
        got = np.asarray(got, np.float64)
        error = got.std(axis=0) / np.sqrt(draws)
        # 5 standard errors over about 50 values: a false alarm once in 30,000 runs, and the seed is fixed
        assert np.all(np.abs(got.mean(axis=0) - np.asarray(sent)) <= 5 * error + 1e-6 * np.abs(np.asarray(sent)))


def test_message_shapes_are_known_without_encoding(name, codec, which):
    expected = jax.eval_shape(lambda t: codec.encode(jax.random.key(0), codec.init(t), t)[0], TREES[which])
    message, _, _ = exchange(name, which)
    assert trees.num_bytes(expected) == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(message))
    assert jax.tree.structure(expected) == jax.tree.structure(message)


def test_the_serialized_message_has_the_counted_length(name, which):
    message, _, _ = exchange(name, which)
    serialized = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(message))
    assert len(serialized) == trees.num_bytes(message)


def test_jit_changes_nothing(name, codec):
    state = codec.init(TREES["normal"])
    plain, _ = codec.encode(jax.random.key(0), state, TREES["normal"])
    jitted, _, _ = exchange(name, "normal")
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_vmap_equals_a_loop_over_clients(name):
    keys = jax.random.split(jax.random.key(4), 3)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -0.5 * x]), TREES["normal"])
    stacked["params"]["layer"] = {
        name: jnp.abs(x) if trees.is_clip(name) else x for name, x in stacked["params"]["layer"].items()
    }
    _, together, _ = jax.jit(jax.vmap(compiled(name)))(keys, stacked)
    for i in range(3):
        _, alone, _ = compiled(name)(keys[i], jax.tree.map(lambda x, i=i: x[i], stacked))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            # sums of 64 rotated values, there and back, of at most 5: a few float32 roundings of that size
            tolerance = 2.0**-20 * 5 if name.split("-")[0] in SUMMING else 0.0
            np.testing.assert_allclose(a[i], b, rtol=0, atol=tolerance)


def test_the_state_keeps_its_structure(codec):
    tree = TREES["normal"]
    state = codec.init(tree)
    _, after = jax.eval_shape(lambda s, t: codec.encode(jax.random.key(0), s, t), state, tree)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert trees.shapes(after) == trees.shapes(state)


def test_parts_that_are_not_sent_hold_zeros(name, which):
    """So that their number alone says what a message costs, and nothing can leak through them."""
    message, _, _ = exchange(name, which)
    found = [x for x in jax.tree.leaves(message, is_leaf=is_sections) if is_sections(x)]
    for sections in found:
        bits = np.unpackbits(np.asarray(sections.present), bitorder="little")
        assert bits.size == 8 * -(-len(sections.parts) // 8)
        assert not bits[len(sections.parts) :].any()
        for bit, part in zip(bits, sections.parts, strict=False):
            assert bit or not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(part))
    if not found:
        pytest.skip("all of the message is always sent")


def is_sections(x):
    return isinstance(x, Sections)


def test_leaves_that_are_not_float32_pass_through(name):
    _, decoded, _ = exchange(name, "no_clips")
    np.testing.assert_array_equal(decoded["step"], TREES["no_clips"]["step"])
