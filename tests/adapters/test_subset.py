"""Training a part of a model: which leaves, how many bytes, and that nothing happens to the others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from fedjax8 import paths, trees
from fedjax8.adapters.lora import lora
from fedjax8.adapters.qat import qat
from fedjax8.adapters.subset import chosen_leaves, subset
from fedjax8.errors import UserError
from fedjax8.models.linen import from_linen
from fedjax8.models.nnx import from_nnx
from fedjax8.types import Variables

CLASSES = (100, 45, 2)
KEY = jax.random.key(0)


def same(a, b):
    a, b = trees.named_leaves(a), trees.named_leaves(b)
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], err_msg=name)


def trained(model, batch):
    return trees.named_leaves(jax.eval_shape(model.init, KEY, batch).params)


# Float32 bytes a client and direction, from the shapes of the layers: spec of ViT-B/16, 4 bytes a number.
COUNTS = {
    "full": (85_875_556, 85_833_261, 85_800_194),
    "head": (76_900, 34_605, 1_538),
    "bias": (179_812, 137_517, 104_450),
}


@pytest.mark.slow
def test_what_travels_of_vit_b16_has_as_many_numbers_as_its_layers_say(vit_b16, patches):
    for i, classes in enumerate(CLASSES):
        model = vit_b16(classes)
        whole = jax.eval_shape(model.init, KEY, patches)
        assert trees.num_bytes(whole.params) == 4 * COUNTS["full"][i]
        for preset in ("head", "bias"):
            chosen = chosen_leaves((preset,), model, whole, patches, "", list(trees.named_leaves(whole.params)))
            sent, frozen = paths.divide(whole.params, chosen)
            assert trees.num_bytes(sent) == 4 * COUNTS[preset][i]
            assert trees.num_bytes(frozen) == 4 * (COUNTS["full"][i] - COUNTS[preset][i])


def test_bias_is_the_biases_of_layers_and_norms_and_all_of_the_head(tiny, tokens):
    names = set(trained(subset(tiny), tokens))
    assert "head/kernel" in names
    assert {name for name in names if name != "head/kernel"} == {
        name for name in trained(tiny, tokens) if name.endswith("/bias")
    }


def test_all_leaves_are_the_model_itself(tiny):
    assert subset(tiny, "full") is tiny
    assert subset(tiny, ("head", "full")) is tiny


def test_a_model_whose_part_is_trained_computes_what_it_did(tiny, tokens, base):
    variables, logits = base
    model = subset(tiny, ("*attention*", "norm/*"))
    own = jax.jit(model.init)(KEY, tokens)
    same(paths.whole(own), variables)
    assert all("attention" in name or name.startswith("norm/") for name in trees.named_leaves(own.params))
    np.testing.assert_array_equal(jax.jit(model.apply)(own, tokens)[0], logits)


def test_what_is_frozen_stays_bit_for_bit_and_what_is_trained_moves_as_in_the_whole_model(tiny, tokens, base, sgd):
    model = subset(tiny, "bias")
    start = jax.jit(model.init)(KEY, tokens)
    after, (gradients,) = sgd(model, start, tokens)
    same(after.frozen, start.frozen)
    assert jax.tree.structure(gradients) == jax.tree.structure(start.params)
    whole = trees.named_leaves(sgd(tiny, base[0], tokens)[1][0])
    for name, gradient in trees.named_leaves(gradients).items():
        # The same sums, which the smaller program may order otherwise: at most 28 tokens of size 1.
        np.testing.assert_allclose(gradient, whole[name], atol=28 * 2.0**-22, rtol=0, err_msg=name)
        assert np.any(np.asarray(gradient) != 0.0)


def test_the_gradient_of_a_frozen_kernel_is_not_computed(tiny, tokens):
    def products(model):
        variables = jax.eval_shape(model.init, KEY, tokens)

        def loss(params, state, frozen):
            outputs, _ = model.apply(Variables(params, state, frozen), tokens, train=True)
            return jnp.mean(model.loss(outputs, tokens))

        return jax.jit(jax.grad(loss)).lower(*variables).as_text().count("stablehlo.dot_general")

    # 8 dense layers and 2 products in attention, each once forward. With the head alone its own kernel gradient and no
    # more; else two for each, but that of the input.
    assert products(subset(tiny, "head")) == 8 + 2 + 1
    assert products(tiny) == 3 * (8 + 2) - 1


def test_a_frozen_model_runs_as_in_evaluation_unless_told_otherwise(transformer, tokens, base):
    dropping = transformer(8, 1, 2, 16, 3, dropout=0.5)
    _, logits = base
    for model, equal in ((subset(dropping), True), (subset(dropping, train_mode=True), False)):
        own = jax.jit(model.init)(KEY, tokens)
        outputs, _ = jax.jit(lambda own, m=model: m.apply(own, tokens, key=jax.random.key(3), train=True))(own)
        assert np.allclose(outputs, logits, atol=1e-5) == equal


class Normed(nn.Module):
    """Has batch statistics."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x)))


@pytest.mark.parametrize("train_mode", [False, True])
def test_state_of_the_model_is_carried_beside_what_is_frozen(train_mode, rng):
    batch = {"x": jnp.asarray(rng.normal(size=(5, 4)), jnp.float32), "y": jnp.arange(5) % 3, "mask": jnp.ones(5)}
    whole = from_linen(Normed(), train_argument="train")
    model = subset(whole, "head", train_mode=train_mode)
    start = model.init(KEY, batch)
    _, state = model.apply(start, batch, train=True)
    _, moved = whole.apply(paths.whole(start), batch, train=True)
    assert start.frozen
    same(state, moved if train_mode else start.state)


def test_nnx_models_are_divided_too(rng):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.layers = nnx.List([nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)])

        def __call__(self, x):
            return self.layers[1](nnx.relu(self.layers[0](x)))

    batch = {"x": jnp.asarray(rng.normal(size=(2, 4)), jnp.float32), "y": jnp.arange(2), "mask": jnp.ones(2)}
    whole = from_nnx(lambda rngs: Net(rngs))
    model = subset(whole, "head")
    own = model.init(KEY, batch)
    assert set(trees.named_leaves(own.params)) == {"layers/1/kernel", "layers/1/bias"}
    np.testing.assert_array_equal(model.apply(own, batch)[0], whole.apply(whole.init(KEY, batch), batch)[0])
    adapted = lora(whole, 2)
    own = adapted.init(KEY, batch)
    assert set(trees.named_leaves(own.params)) >= {"layers/0/lora/a", "layers/0/lora/b"}
    np.testing.assert_array_equal(adapted.apply(own, batch)[0], whole.apply(whole.init(KEY, batch), batch)[0])


def test_a_part_of_a_part_has_all_that_is_frozen_in_one_tree(tiny, tokens, base):
    model = subset(lora(tiny, 2, targets=("*/query", "*/value")), "*query*")
    own = jax.jit(model.init)(KEY, tokens)
    assert set(trees.named_leaves(own.params)) == {f"block_0/attention/query/lora/{n}" for n in "ab"}
    inside = jax.eval_shape(lora(tiny, 2, targets=("*/query", "*/value")).init, KEY, tokens)
    assert own.state == {}
    assert set(trees.named_leaves(own.frozen)) == (
        set(trees.named_leaves(paths.whole(inside).params)) - set(trees.named_leaves(own.params))
    )
    np.testing.assert_array_equal(jax.jit(model.apply)(own, tokens)[0], base[1])


def test_weight_decay_and_optimizers_see_what_is_trained_alone(tiny, tokens):
    own = jax.jit(subset(tiny, "head").init)(KEY, tokens)
    moments = optax.adamw(0.1).init(own.params)
    assert trees.num_bytes(moments) == 2 * trees.num_bytes(own.params) + 4  # and the step count


@pytest.mark.parametrize("adapter", [subset, lora])
def test_quantization_outside_of_what_is_frozen_is_refused_and_inside_it_keeps_clips_positive(
    adapter, tiny, tokens, base
):
    with pytest.raises(UserError, match=r"put qat inside"):
        jax.eval_shape(qat(adapter(tiny)).init, KEY, tokens)
    model = adapter(qat(tiny), train="*clip")
    own = jax.jit(model.init)(KEY, tokens)
    clips = [name for name in trees.named_leaves(own.params) if trees.is_clip(name)]
    assert "head/kernel_clip" in clips
    projected = model.project(jax.tree.map(lambda x: x - 1e3, own.params))
    assert jax.tree.structure(projected) == jax.tree.structure(own.params)
    assert projected["head"]["kernel_clip"] > 0
    assert model.report(own.params).keys() == {f"clip/{name.removesuffix('_clip')}" for name in clips}
    rounded, plain = jax.jit(lambda own: (model.apply(own, tokens)[0], model.views["float32"](own, tokens)[0]))(own)
    # The same float32 sums of at most 16 products of size about 1, in another program.
    np.testing.assert_allclose(plain, base[1], atol=16 * 2.0**-22, rtol=0)
    assert np.any(np.asarray(rounded) != np.asarray(plain))


def test_a_pattern_that_matches_nothing_names_the_nearest_path(tiny, tokens):
    with pytest.raises(UserError, match=r"subset: pattern 'block_0/mlp/frist/bias' .*mean 'block_0/mlp/first/bias'"):
        jax.eval_shape(subset(tiny, ("head", "block_0/mlp/frist/bias")).init, KEY, tokens)


def test_settings_that_train_nothing_or_are_no_patterns_are_refused(tiny):
    with pytest.raises(ValueError, match="train names nothing"):
        subset(tiny, ())
    with pytest.raises(ValueError, match=r"path patterns must be texts.*\[3\]"):
        subset(tiny, [3])


def test_divided_trees_join_to_what_they_were_and_trees_that_share_a_leaf_do_not():
    tree = {"a": {"x": 1, "y": 2}, "b": 3}
    inside, outside = paths.divide(tree, {"a/y", "b"})
    assert (inside, outside) == ({"a": {"y": 2}, "b": 3}, {"a": {"x": 1}})
    assert paths.join(inside, outside) == tree
    with pytest.raises(ValueError, match="same leaf: b"):
        paths.join(inside, tree)
