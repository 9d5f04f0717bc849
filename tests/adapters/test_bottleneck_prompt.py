"""Adapters behind modules and prompts before blocks, put around a model from outside."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fedjax8 import paths, trees
from fedjax8.adapters.bottleneck import bottleneck
from fedjax8.adapters.prompt import prompt
from fedjax8.adapters.subset import subset
from fedjax8.errors import UserError
from fedjax8.models.linen import from_linen
from fedjax8.models.nnx import from_nnx

KEY = jax.random.key(0)
SIZES = {
    "shared bottleneck": (bottleneck, {"shared": True}, 225_220),
    "bottlenecks": (bottleneck, {}, 1_856_740),
    "deep prompts": (prompt, {}, 169_060),
    "shallow prompts": (prompt, {"deep": False}, 84_580),
}
"""Numbers that travel of ViT-B/16 with 100 classes, the head's 76,900 among them."""


@pytest.mark.slow
@pytest.mark.parametrize("case", SIZES)
def test_what_travels_of_vit_b16_has_as_many_numbers_as_the_table_says(case, vit_b16, patches):
    adapter, settings, count = SIZES[case]
    params = jax.eval_shape(adapter(vit_b16(100), **settings).init, KEY, patches).params
    assert trees.num_bytes(params) == 4 * count


@pytest.mark.parametrize("shared", [False, True])
def test_a_bottleneck_computes_nothing_new_at_first_and_all_of_it_learns_in_two_steps(shared, tiny, tokens, base, sgd):
    model = bottleneck(tiny, width=4, shared=shared)
    start = jax.jit(model.init)(KEY, tokens)
    np.testing.assert_array_equal(jax.jit(model.apply)(start, tokens)[0], base[1])
    after, _ = sgd(model, start, tokens, steps=2)
    old = trees.named_leaves(start.params)
    assert sum(name.startswith("bottleneck/") for name in old) == 4
    for name, new in trees.named_leaves(after.params).items():
        assert np.any(np.asarray(new) != np.asarray(old[name])), name
    for name, leaf in trees.named_leaves(paths.whole(after).params).items():
        if name not in old:
            np.testing.assert_array_equal(leaf, trees.named_leaves(base[0].params)[name])


def test_the_authors_bottleneck_learns_its_last_bias_alone(tiny, tokens, sgd):
    model = bottleneck(tiny, width=4, paper_code=True, train=())
    after, _ = sgd(model, jax.jit(model.init)(KEY, tokens), tokens, steps=2)
    moved = {name for name, x in trees.named_leaves(after.params).items() if np.any(np.asarray(x) != 0.0)}
    assert moved == {"bottleneck/block_0/mlp/up/bias"}


class Line(nn.Module):
    """Two dense layers of one width."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="second")(nn.Dense(3, name="first")(x))


@pytest.mark.parametrize("shared", [False, True])
def test_a_bottleneck_adds_its_network_behind_each_module(shared, rng):
    batch = {"x": jnp.asarray(rng.normal(size=(2, 5)), jnp.float32), "y": jnp.arange(2), "mask": jnp.ones(2)}
    model = bottleneck(from_linen(Line()), ("first", "second"), 2, shared=shared, train=())
    own = model.init(KEY, batch)
    own = own._replace(params=jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), jnp.float32), own.params))
    z = np.asarray(batch["x"], np.float64)
    for layer in ("first", "second"):
        dense = jax.tree.map(np.float64, paths.whole(own).params[layer])
        node = jax.tree.map(np.float64, own.params["bottleneck"] if shared else own.params["bottleneck"][layer])
        z = z @ dense["kernel"] + dense["bias"]
        inner = z @ node["down"]["kernel"] + node["down"]["bias"]
        inner = np.float64(jax.nn.gelu(jnp.float32(inner), approximate=False))
        z = z + inner @ node["up"]["kernel"] + node["up"]["bias"]
    np.testing.assert_allclose(model.apply(own, batch)[0], z, rtol=1e-4, atol=1e-5)


# Prompts.


class Mix(nn.Module):
    """A block that adds the mean of all tokens to each, and tells how many there are."""

    note: Callable[[int], None]

    @nn.compact
    def __call__(self, x):
        self.note(x.shape[1])
        return x + jnp.mean(x, axis=1, keepdims=True)


class Mixer(nn.Module):
    """Two blocks, and the first token through a head that changes nothing."""

    note: Callable[[int], None] = lambda length: None

    @nn.compact
    def __call__(self, x):
        for i in range(2):
            x = Mix(self.note, name=f"block_{i}")(x)
            self.note(x.shape[1])
        eye = lambda key, shape, dtype: jnp.eye(*shape, dtype=dtype)
        return nn.Dense(x.shape[-1], use_bias=False, kernel_init=eye, name="head")(x[:, 0])


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_stand_behind_the_tokens_inside_blocks_and_nowhere_else(deep, rng):
    x, lengths = rng.normal(size=(2, 4, 3)), []
    batch = {"x": jnp.asarray(x, jnp.float32), "y": jnp.arange(2), "mask": jnp.ones(2)}
    model = prompt(from_linen(Mixer(lengths.append)), tokens=2, deep=deep, train=())
    own = model.init(KEY, batch)
    prompts = np.asarray(own.params["prompt"]["tokens"], np.float64)
    assert prompts.shape == (2 if deep else 1, 2, 3)
    lengths.clear()
    got, _ = model.apply(own, batch)
    assert lengths == [6, 4, 6, 4]
    carried = np.broadcast_to(prompts[0], (2, 2, 3))
    for block in range(2):
        carried = np.broadcast_to(prompts[block], (2, 2, 3)) if deep else carried
        longer = np.concatenate([x, carried], axis=1)
        longer = longer + longer.mean(axis=1, keepdims=True)
        x, carried = longer[:, :4], longer[:, 4:]
    np.testing.assert_allclose(got, x[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("deep", [True, False])
def test_prompts_learn_and_change_the_outputs_and_the_rest_stays(deep, two_blocks, tokens, sgd):
    model = prompt(two_blocks, tokens=3, deep=deep, dropout=0.0)
    start = jax.jit(model.init)(KEY, tokens)
    after, (gradients,) = sgd(model, start, tokens)
    assert np.all(np.any(np.asarray(gradients["prompt"]["tokens"]) != 0.0, axis=(1, 2)))
    for old, new in zip(jax.tree.leaves(start.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(new, old)
    run = jax.jit(model.apply)
    assert np.any(np.asarray(run(after, tokens)[0]) != np.asarray(run(start, tokens)[0]))


def test_no_prompts_is_training_the_head(tiny, tokens):
    got, want = (jax.eval_shape(m.init, KEY, tokens) for m in (prompt(tiny, tokens=0), subset(tiny, "head")))
    assert jax.tree.structure(got) == jax.tree.structure(want)


def test_prompts_start_uniform_within_the_bound_that_is_said():
    model = prompt(from_linen(Mixer()), tokens=2000, patch_values=21, train=())
    batch = {"x": jnp.zeros((1, 4, 3)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1)}
    values = np.asarray(model.init(KEY, batch).params["prompt"]["tokens"])
    bound = np.sqrt(6 / 24)
    assert np.abs(values).max() <= bound
    # 12000 draws: the variance is known to sqrt(0.8 / 12000) = 0.8% of itself; four of these are allowed.
    assert abs(np.var(values) / (bound**2 / 3) - 1) < 0.033


def test_dropout_falls_on_prompts_while_training_by_the_key_alone():
    model = prompt(from_linen(Mixer()), tokens=2, dropout=0.5, train=())
    batch = {"x": jnp.zeros((3, 4, 3)), "y": jnp.zeros(3, jnp.int32), "mask": jnp.ones(3)}
    own = model.init(KEY, batch)
    run = lambda seed, train: np.asarray(model.apply(own, batch, key=jax.random.key(seed), train=train)[0])
    np.testing.assert_array_equal(run(1, False), run(2, False))
    np.testing.assert_array_equal(run(1, True), run(1, True))
    assert np.any(run(1, True) != run(2, True))
    assert np.any(run(1, True)[0] != run(1, True)[1])  # rows of one batch drop differently


# What is refused.


def test_patterns_that_match_no_module_name_the_nearest_path(tiny, tokens):
    with pytest.raises(UserError, match=r"bottleneck: pattern '\*/mpl' .*mean 'block_0/mlp'"):
        jax.eval_shape(bottleneck(tiny, "*/mpl").init, KEY, tokens)
    with pytest.raises(UserError, match=r"prompt: pattern 'blok_0' .*mean 'block_0'"):
        jax.eval_shape(prompt(tiny, "blok_0").init, KEY, tokens)


def test_modules_that_do_not_fit_are_refused(tiny, tokens):
    with pytest.raises(UserError, match=r"shared adapter needs modules of one width; .*'block_0/mlp/first': 16"):
        jax.eval_shape(bottleneck(tiny, "*/mlp/*", shared=True).init, KEY, tokens)
    with pytest.raises(UserError, match=r"prompt: module 'block_0/mlp/first' maps \(4, 7, 8\) to \(4, 7, 16\)"):
        jax.eval_shape(prompt(tiny, "*/first").init, KEY, tokens)

    def nnx_model(rngs):
        return nnx.Linear(4, 3, rngs=rngs)

    batch = {"x": jnp.zeros((1, 4)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1)}
    with pytest.raises(UserError, match="bottleneck: the model has no modules of flax linen"):
        bottleneck(from_nnx(nnx_model)).init(KEY, batch)


@pytest.mark.parametrize(
    ("adapter", "settings", "message"),
    [
        (bottleneck, {"width": 0}, "width must be at least 1, got 0"),
        (bottleneck, {"at": ()}, "at names no module"),
        (prompt, {"tokens": -1}, "tokens must not be negative, got -1"),
        (prompt, {"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        (prompt, {"at": ()}, "at names no module"),
    ],
)
def test_bad_settings_are_refused(adapter, settings, message, tiny):
    with pytest.raises(ValueError, match=message):
        adapter(tiny, **settings)
