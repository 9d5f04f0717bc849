"""What `client.weight_decay` reaches."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.build import build_optimizer
from fedjax8.config import component


def test_weight_decay_reaches_kernels_and_neither_biases_nor_clips():
    """Rate 1, decay 0.5, no gradient: kernels of ones lose a half."""
    optimizer = build_optimizer(component("sgd", learning_rate=1.0), 0.5)
    params = {"kernel": jnp.ones((2, 3)), "kernel_clip": jnp.float32(1), "bias": jnp.ones(3)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["kernel"], -0.5)
    assert not np.any(updates["bias"]) and not np.any(updates["kernel_clip"])
