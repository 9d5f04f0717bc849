"""The split of a parameter tree into what travels and what a client keeps."""

import importlib

import jax
import jax.numpy as jnp
import pytest

from fedjax8 import trees
from fedjax8.adapters.qat import qat
from fedjax8.errors import UserError
from fedjax8.models.mlp import mlp
from fedjax8.paths import ALL_PUBLIC, last_layer, layers_of, split

TREE = {"body": {"a": {"kernel": 1, "bias": 2}, "b": {"kernel": 3}}, "head": {"kernel": 4, "kernel_clip": 5, "bias": 6}}
HEAD = {"kernel": 4, "kernel_clip": 5, "bias": 6}


@pytest.mark.parametrize(
    ("private", "own"),
    [
        (None, {"head": HEAD}),
        ("head", {"head": HEAD}),
        (("head/*",), {"head": HEAD}),
        (("head/kernel",), {"head": {"kernel": 4, "kernel_clip": 5}}),  # the clip goes with its kernel
        (("*/bias", "body/b"), {"body": {"a": {"bias": 2}, "b": {"kernel": 3}}, "head": {"bias": 6}}),
    ],
)
def test_a_tree_is_cut_by_patterns_and_merged_again(private, own):
    cut = split(private)
    public, found = cut.cut(TREE)
    assert found == own
    assert set(trees.named_leaves(public)) == set(trees.named_leaves(TREE)) - set(trees.named_leaves(own))
    assert cut.merge(public, found) == TREE


def test_a_clip_by_itself_is_no_part():
    """Every `head/kernel_clip` follows `head/kernel`, which stays public here."""
    with pytest.raises(UserError, match="nothing but clips"):
        split("head/kernel_clip").cut(TREE)


def test_without_patterns_the_tree_itself_is_public():
    public, own = ALL_PUBLIC.cut(TREE)
    assert public is TREE and own == {} and ALL_PUBLIC.merge(public, own) is TREE
    with pytest.raises(ValueError, match="no pattern is given"):
        split(())  # fedper, say, would be fedavg


@pytest.mark.parametrize(
    ("private", "message"),
    [
        ("hed", "'hed' matches none of .*did you mean 'head'"),
        ("*", r"\* match everything"),
        (("head", "body"), "match everything"),
    ],
)
def test_patterns_that_cut_nothing_are_refused(private, message):
    with pytest.raises(UserError, match=message):
        split(private).cut(TREE)


def test_a_last_layer_that_is_not_plain_is_refused_with_the_paths():
    with pytest.raises(UserError, match=r"isn't plain.*encoder/kernel.*private=\('encoder',\)"):
        split(None).cut({"encoder": {"kernel": 1, "bias": 2}})


IMAGES = ("cnn", "lenet5", "logistic", "mlp", "resnet20", "simple_cnn", "vit")


@pytest.mark.parametrize("name", IMAGES)
def test_the_last_layer_by_name_is_the_one_that_multiplies_last(name):
    module = importlib.import_module(f"fedjax8.models.{name}")
    model = getattr(module, name)(**module.EXAMPLES[-1])
    batch = {"x": jnp.zeros((1, 32, 32, 3)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1)}
    variables = jax.eval_shape(model.init, jax.random.key(0), batch)
    assert last_layer(list(trees.named_leaves(variables.params))) == list(layers_of(model, variables, batch))[-1]


def test_clips_of_a_quantized_model_stay_with_their_layer():
    batch = {"x": jnp.ones((2, 3)), "y": jnp.zeros(2, jnp.int32), "mask": jnp.ones(2)}
    params = qat(mlp((4,), 2)).init(jax.random.key(0), batch).params
    public, own = split("Dense_1/kernel").cut(params)
    assert set(trees.named_leaves(own)) == {"Dense_1/kernel", "Dense_1/kernel_clip", "Dense_1/input_clip"}
    assert set(trees.named_leaves(public)["Dense_1/bias"].shape) == {2}
