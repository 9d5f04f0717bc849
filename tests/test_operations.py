"""Counted operations equal counts by hand, and do not depend on the machine."""

import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.adapters import lora, qat
from fedjax8.data.batches import batch_plan
from fedjax8.models import char_lstm, mlp, resnet20, simple_cnn, vit
from fedjax8.operations import multiply_adds, step_operations

BATCH = 5


def columns(*shape):
    return {"x": np.zeros((7, *shape), np.float32), "y": np.zeros(7, np.int64)}


def test_multiply_adds_are_counted_through_loops_branches_and_convolutions():
    a = jnp.ones((3, 3))
    step = lambda x, _: (jax.lax.cond(x[0, 0] > 0, lambda y: y @ a @ a, lambda y: y @ a, x), None)
    assert multiply_adds(lambda x: jax.lax.scan(step, x, None, length=5)[0], a) == 5 * 2 * 27
    numbers = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    grouped = lambda x, k: jax.lax.conv_general_dilated(x, k, feature_group_count=2, **numbers)
    assert multiply_adds(grouped, jnp.ones((1, 5, 5, 4)), jnp.ones((3, 3, 2, 6))) == 25 * 6 * 9 * 2


def test_a_step_of_an_mlp_has_the_operations_of_a_hand_count():
    """Forward x k, backward x^T dy of every layer, and dy k^T of all but the first."""
    first, second, third = 64 * 8, 8 * 4, 4 * 3
    by_hand = 2 * BATCH * (3 * (first + second + third) - first)
    assert step_operations(mlp((8, 4), 3), batch_plan(BATCH, epochs=1), columns(8, 8)) == by_hand


def test_rounding_adds_no_operations_and_freezing_saves_some():
    """Rounding adds no products; frozen kernels need no dk, which saves more than factors of rank 1 cost."""
    plan, shape = batch_plan(BATCH, steps=1), columns(64)
    plain, rounded = mlp((8,), 3), qat(mlp((8,), 3))
    assert step_operations(rounded, plan, shape) == step_operations(plain, plan, shape)
    assert 0 < step_operations(lora(plain, rank=1), plan, shape) < step_operations(plain, plan, shape)


IMAGES = columns(32, 32, 3)
WORDS = {"x": np.zeros((7, 20), np.int32), "y": np.zeros((7, 20), np.int64)}
TINY_VIT = {"patch_size": 16, "image_size": 32, "num_classes": 10}


@pytest.mark.parametrize(
    ("model", "rows"),
    [(simple_cnn(), IMAGES), (resnet20(), IMAGES), (vit("tiny", **TINY_VIT), IMAGES), (char_lstm(hidden=16), WORDS)],
    ids=["simple_cnn", "resnet20", "vit", "char_lstm"],
)
def test_a_model_has_the_same_operations_on_every_platform(model, rows):
    """Convolutions, large kernels and attention have forms for CPUs."""
    plan = batch_plan(BATCH, steps=1)
    here = step_operations(model, plan, rows)
    with unittest.mock.patch("jax.default_backend", return_value="gpu"):
        assert step_operations(model, plan, rows) == here > 0


def test_a_step_of_a_convolutional_network_has_the_operations_of_a_hand_count():
    """32x32x3 to 30x30x32, 28x28x64, pooled to 14x14x64, dense layers to 128 and 10; no dx of the first layer."""
    first, second = 30 * 30 * 32 * 27, 28 * 28 * 64 * 288
    dense = 14 * 14 * 64 * 128 + 128 * 10
    by_hand = 2 * BATCH * (3 * (first + second + dense) - first)
    assert step_operations(simple_cnn(), batch_plan(BATCH, steps=1), IMAGES) == by_hand
