"""Low-rank factors beside frozen kernels: sizes, starts, steps, merging, convolutions, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax8 import paths, trees
from fedjax8.adapters.lora import lora, merge
from fedjax8.adapters.ptq import ptq
from fedjax8.adapters.qat import qat
from fedjax8.errors import UserError
from fedjax8.models.char_lstm import char_lstm
from fedjax8.models.linen import from_linen
from fedjax8.types import Variables

KEY = jax.random.key(0)
QUERY_VALUE = ("*/query", "*/value")


def leaves_of(variables):
    return trees.named_leaves(variables.params)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "beyond_the_head"),
    [
        ({"rank": 8}, 371_812 - 76_900),
        ({"rank": 4}, 224_356 - 76_900),
        ({"rank": 8, "learn": "b"}, 12 * 2 * 8 * 768),
        ({"rank": 8, "learn": "middle"}, 12 * 2 * 8 * 8),
    ],
)
def test_what_travels_of_vit_b16_is_the_factors_and_the_head(settings, beyond_the_head, vit_b16, patches):
    model = lora(vit_b16(100), targets=QUERY_VALUE, **settings)
    assert trees.num_bytes(jax.eval_shape(model.init, KEY, patches).params) == 4 * (beyond_the_head + 76_900)


@pytest.mark.parametrize("learn", ["both", "b", "middle"])
def test_at_first_it_is_the_model_with_the_same_weights(learn, tiny, tokens, base):
    model = lora(tiny, 2, learn=learn)
    own = jax.jit(model.init)(KEY, tokens)
    np.testing.assert_array_equal(jax.jit(model.apply)(own, tokens)[0], base[1])
    whole = trees.named_leaves(paths.whole(own).params)
    for name, leaf in trees.named_leaves(base[0].params).items():
        np.testing.assert_array_equal(whole[name], leaf)


MOVES = {"both": ({"b"}, {"a", "b"}), "b": ({"b"}, {"b"}), "middle": ({"middle"}, {"middle"})}
"""Leaves of a factor pair with a gradient in the first step, and in the second."""


@pytest.mark.parametrize("learn", MOVES)
def test_gradients_reach_a_with_the_second_step_and_merging_gives_the_same_outputs(learn, tiny, tokens, sgd):
    model = lora(tiny, 2, alpha=6.0, targets=QUERY_VALUE, learn=learn)
    start = jax.jit(model.init)(KEY, tokens)
    after, gradients = sgd(model, start, tokens, steps=2)
    for of_step, moving in zip(gradients, MOVES[learn], strict=True):
        factors = {n: g for n, g in trees.named_leaves(of_step).items() if "/lora/" in n}
        assert {name.rpartition("/")[2] for name, g in factors.items() if np.any(np.asarray(g) != 0.0)} == moving
    for old, new in zip(jax.tree.leaves(start.frozen), jax.tree.leaves(after.frozen), strict=True):
        np.testing.assert_array_equal(new, old)

    node = paths.whole(after).params["block_0"]["attention"]["query"]
    a, b = (np.asarray(node["lora"][name], np.float64) for name in "ab")
    middle = np.asarray(node["lora"].get("middle", np.eye(2)), np.float64)
    merged = merge(after)
    kernel = np.asarray(node["kernel"], np.float64) + 3.0 * a @ middle @ b  # alpha / r = 3
    np.testing.assert_allclose(merged.params["block_0"]["attention"]["query"]["kernel"], kernel, atol=1e-6)
    want = jax.jit(tiny.apply)(merged, tokens)[0]
    # Two ways to sum the same float32 products, through one block of width 8 and two norms.
    np.testing.assert_allclose(jax.jit(model.apply)(after, tokens)[0], want, atol=1e-5, rtol=0)


def test_no_array_of_a_kernels_size_is_formed_from_the_factors(tokens):
    model = lora(from_linen(Wide()), 2, targets="first", train=())

    own = jax.eval_shape(model.init, KEY, {"x": jnp.zeros((3, 40))})

    def value(params, state, frozen, x):
        return jnp.sum(model.apply(Variables(params, state, frozen), {"x": x}, train=True)[0])

    def formed(f, *args):
        """Equations that make an array of the shape of the kernel, which itself comes in."""
        return str(jax.make_jaxpr(f)(*args)).count(":f32[40,50] = ")

    assert formed(jax.grad(value), *own, jnp.zeros((3, 40))) == 0
    assert formed(merge, own) > 0


class Wide(nn.Module):
    """A layer whose kernel is larger than all else."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="last")(nn.Dense(50, name="first")(x))


class Convolutions(nn.Module):
    """A strided and a grouped convolution, then a dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="strided")(x))
        x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, name="grouped")(x))
        return nn.Dense(3, name="dense")(x.reshape(len(x), -1))


@pytest.fixture
def images(rng):
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
    return {"x": x, "y": jnp.asarray([0, 1]), "mask": jnp.ones(2)}


def test_a_convolution_has_a_thin_one_and_a_1x1_one_beside_it_and_merges(images):
    base = from_linen(Convolutions())
    model = lora(base, 2)
    own = model.init(KEY, images)
    shapes = {name: leaf.shape for name, leaf in leaves_of(own).items() if "lora" in name}
    assert shapes == {"strided/lora/a": (3, 3, 3, 2), "strided/lora/b": (2, 4)}
    moved = own._replace(params=jax.tree.map(lambda x: x + 0.3, own.params))
    want = base.apply(merge(moved), images)[0]
    # Sums of 27 and 36 products of size about 1, in another order.
    np.testing.assert_allclose(model.apply(moved, images)[0], want, rtol=1e-4, atol=1e-5)


def test_layers_that_cannot_have_factors_are_refused_when_named(images):
    with pytest.raises(UserError, match=r"'grouped' cannot, its convolution is grouped"):
        lora(from_linen(Convolutions()), targets="grouped").init(KEY, images)
    with pytest.raises(UserError, match=r"'dense' cannot, it is trained in full"):
        lora(from_linen(Convolutions()), targets="dense").init(KEY, images)
    with pytest.raises(UserError, match=r"'strided' is a quantized convolution"):
        lora(qat(from_linen(Convolutions())), targets="strided").init(KEY, images)
    text = {"x": jnp.zeros((2, 4), jnp.int32), "y": jnp.zeros((2, 4), jnp.int32), "mask": jnp.ones(2)}
    with pytest.raises(UserError, match="used many times by a recurrence"):
        jax.eval_shape(lora(char_lstm(), targets="*recurrent*").init, KEY, text)


def test_patterns_that_match_nothing_and_bad_settings_are_refused(tiny, tokens):
    with pytest.raises(UserError, match=r"lora: pattern '\*/qery' matches none of .*mean '.*/query'"):
        jax.eval_shape(lora(tiny, targets="*/qery").init, KEY, tokens)
    for settings, message in (
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, "alpha must be positive, got 0"),
        ({"learn": "a"}, "learn must be one of both, b, middle; got 'a'"),
        ({"start": "ones"}, "start must be one of kaiming, gaussian; got 'ones'"),
    ):
        with pytest.raises(ValueError, match=message):
            lora(tiny, **settings)


@pytest.mark.parametrize("start", ["kaiming", "gaussian"])
def test_a_starts_with_the_spread_that_is_said(start):
    batch = {"x": jnp.zeros((1, 400)), "y": jnp.zeros(1, jnp.int32), "mask": jnp.ones(1)}
    a = lora(from_linen(Wide()), 20, start=start).init(KEY, batch).params["first"]["lora"]["a"]
    # 8000 draws: the deviation is known to 1 / sqrt(2 * 8000) = 0.8%; four of these are allowed.
    want = 1 / np.sqrt(3 * 400) if start == "kaiming" else 1 / 20
    assert abs(np.std(a) / want - 1) < 0.032
    if start == "kaiming":
        assert np.abs(a).max() <= 1 / np.sqrt(400)


def test_a_quantized_model_keeps_its_grid_below_the_factors_and_is_quantized_from_outside_by_ptq(images):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, name="last")(nn.Dense(5, name="first")(x.reshape(len(x), -1)))

    base, quantized = from_linen(Net()), qat(from_linen(Net()))
    model = lora(quantized, 2, train=())
    own, below = model.init(KEY, images), quantized.init(KEY, images)
    np.testing.assert_array_equal(model.apply(own, images)[0], quantized.apply(below, images)[0])
    assert set(leaves_of(own)) == {f"{layer}/lora/{n}" for layer in ("first", "last") for n in "ab"}
    outside = ptq(lora(base, 2, train=()))
    own = outside.init(KEY, images)
    np.testing.assert_array_equal(outside.apply(own, images)[0], ptq(base).apply(base.init(KEY, images), images)[0])
