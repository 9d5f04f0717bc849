"""Every codec file, found by itself, on every one of its examples: what `types.Codec` promises."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.lookup import component_names

PACKAGE = "fedjax8.codecs"


def cases(package=PACKAGE):
    """(id, codec) of every example of every codec in the package."""
    for name in component_names(package):
        module = importlib.import_module(f"{package}.{name}")
        for index, settings in enumerate(module.EXAMPLES):
            yield f"{name}-{index}", getattr(module, name)(**settings)


CODECS = dict(cases())


@pytest.fixture(params=CODECS)
def codec(request):
    return CODECS[request.param]


def layer(kernel, bias=None, clips=True):
    """A tree as the qat adapter makes them, or without clips."""
    kernel = jnp.asarray(kernel, jnp.float32)
    clip = {"kernel_clip": jnp.maximum(jnp.max(jnp.abs(kernel), initial=0.0), 1e-8)} if clips else {}
    bias = jnp.zeros(3) if bias is None else jnp.asarray(bias, jnp.float32)
    return {"params": {"layer": {"kernel": kernel, "bias": bias, **clip}}}


def trees_to_try():
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((7, 5))
    return {
        "normal": layer(normal, rng.standard_normal(3)),
        "no_clips": layer(normal, rng.standard_normal(3), clips=False),
        "zero": layer(np.zeros((4, 3))),
        "constant": layer(np.full((4, 3), 0.7)),
        "huge": layer(1e30 * normal),
        "tiny": layer(1e-30 * normal),
        "one_element": layer(np.full((1, 1), -0.3), np.full(1, 2.0)),
        "empty": layer(np.zeros((0, 3))),
    }


TREES = trees_to_try()


def send(codec, key, tree):
    state = codec.init(tree)
    message, _ = codec.encode(key, state, tree)
    return message, codec.decode(state, message)


@pytest.fixture(params=TREES)
def tree(request):
    return TREES[request.param]


def test_decoding_gives_back_the_structure_shapes_and_dtypes(codec, tree):
    _, decoded = send(codec, jax.random.key(0), tree)
    assert jax.tree.structure(decoded) == jax.tree.structure(tree)
    for got, sent in zip(jax.tree.leaves(decoded), jax.tree.leaves(tree), strict=True):
        assert (got.shape, got.dtype) == (sent.shape, jnp.float32)


def test_the_error_stays_within_the_stated_bound(codec, tree):
    if codec.error_bound is None:
        pytest.skip("no elementwise bound is stated")
    bound = codec.error_bound(tree)
    for seed in range(3):
        _, decoded = send(codec, jax.random.key(seed), tree)
        for got, sent, most in zip(*map(jax.tree.leaves, (decoded, tree, bound)), strict=True):
            # one part in 2**20 for the float32 arithmetic of scaling there and back
            limit = np.asarray(most, np.float64) + 2.0**-20 * np.abs(np.asarray(sent, np.float64))
            assert np.all(np.abs(np.asarray(got, np.float64) - np.asarray(sent, np.float64)) <= limit)


def test_an_unbiased_codec_is_right_on_average(codec):
    if not codec.unbiased:
        pytest.skip("not stated to be unbiased")
    tree, draws = TREES["normal"], 4000
    state = codec.init(tree)
    keys = jax.random.split(jax.random.key(1), draws)
    samples = jax.jit(jax.vmap(lambda k: codec.decode(state, codec.encode(k, state, tree)[0])))(keys)
    for got, sent in zip(jax.tree.leaves(samples), jax.tree.leaves(tree), strict=True):
        got = np.asarray(got, np.float64)
        error = got.std(axis=0) / np.sqrt(draws)
        # 5 standard errors over about 50 values: a false alarm once in 30,000 runs, and the seed is fixed
        assert np.all(np.abs(got.mean(axis=0) - np.asarray(sent)) <= 5 * error + 1e-6 * np.abs(np.asarray(sent)))


def test_message_shapes_are_known_without_encoding(codec, tree):
    expected = jax.eval_shape(lambda t: codec.encode(jax.random.key(0), codec.init(t), t)[0], tree)
    message, _ = send(codec, jax.random.key(0), tree)
    assert trees.num_bytes(expected) == sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(message))
    assert jax.tree.structure(expected) == jax.tree.structure(message)


def test_the_serialized_message_has_the_counted_length(codec, tree):
    message, _ = send(codec, jax.random.key(0), tree)
    serialized = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(message))
    assert len(serialized) == trees.num_bytes(message)


def test_jit_changes_nothing(codec):
    tree, key = TREES["normal"], jax.random.key(3)
    state = codec.init(tree)
    plain, _ = codec.encode(key, state, tree)
    jitted, _ = jax.jit(codec.encode)(key, state, tree)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(jitted), strict=True):
        np.testing.assert_array_equal(np.asarray(a, np.float32), np.asarray(b, np.float32))


def test_vmap_equals_a_loop_over_clients(codec):
    tree = TREES["normal"]
    state = codec.init(tree)
    keys = jax.random.split(jax.random.key(4), 3)
    stacked = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -0.5 * x]), tree)
    stacked["params"]["layer"] = {
        name: jnp.abs(x) if trees.is_clip(name) else x for name, x in stacked["params"]["layer"].items()
    }

    def there_and_back(key, tree):
        return codec.decode(state, codec.encode(key, state, tree)[0])

    together = jax.vmap(there_and_back)(keys, stacked)
    for i in range(3):
        alone = there_and_back(keys[i], jax.tree.map(lambda x, i=i: x[i], stacked))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_the_state_keeps_its_structure(codec):
    tree = TREES["normal"]
    state = codec.init(tree)
    _, after = codec.encode(jax.random.key(0), state, tree)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert trees.shapes(after) == trees.shapes(state)


def test_leaves_that_are_not_float32_pass_through(codec):
    tree = TREES["normal"] | {"step": jnp.arange(6, dtype=jnp.int32).reshape(2, 3)}
    _, decoded = send(codec, jax.random.key(0), tree)
    np.testing.assert_array_equal(decoded["step"], tree["step"])
    assert decoded["step"].dtype == jnp.int32
