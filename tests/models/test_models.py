"""Models: sizes as published, and outputs that a few lines of lax and flax reproduce."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fedjax8.models.cnn import CNN
from fedjax8.models.lenet5 import LeNet5
from fedjax8.models.logistic import Logistic
from fedjax8.models.mlp import MLP
from fedjax8.models.simple_cnn import SimpleCNN

# module, input, numbers in kernels, numbers elsewhere
SIZES = {
    "mlp": (MLP(), (28, 28), 158_800, 210),
    "two hidden layers": (MLP((16, 8), 3), (4, 5), 472, 27),
    "logistic": (Logistic(10), (28, 28, 1), 7_840, 10),
    "feddyn, 10 classes": (CNN(), (32, 32, 3), 797_248, 714),
    "feddyn, 100 classes": (CNN(100), (32, 32, 3), 814_528, 804),
    "lenet5": (LeNet5(), (28, 28, 1), 61_470, 236),
    "lenet5, images of the paper": (LeNet5(padding="VALID"), (32, 32, 1), 61_470, 236),
    "simple cnn": (SimpleCNN(), (32, 32, 3), 1_626_208, 234),
}


@pytest.mark.parametrize(("module", "image", "in_kernels", "elsewhere"), SIZES.values(), ids=SIZES)
def test_parameters_are_counted_exactly(module, image, in_kernels, elsewhere):
    made = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *image)))
    leaves = jax.tree_util.tree_leaves_with_path(made["params"])
    kernels = sum(leaf.size for path, leaf in leaves if path[-1].key == "kernel")
    assert (kernels, sum(leaf.size for _, leaf in leaves) - kernels) == (in_kernels, elsewhere)
    assert {leaf.dtype for _, leaf in leaves} == {jnp.dtype("float32")}


def test_layers_have_the_names_flax_gives_them():
    made = jax.eval_shape(SimpleCNN().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    shapes = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in
              jax.tree_util.tree_leaves_with_path(made["params"])}  # fmt: skip
    assert shapes == {
        "Conv_0/bias": (32,),
        "Conv_0/kernel": (3, 3, 3, 32),
        "Conv_1/bias": (64,),
        "Conv_1/kernel": (3, 3, 32, 64),
        "Dense_0/bias": (128,),
        "Dense_0/kernel": (12_544, 128),
        "Dense_1/bias": (10,),
        "Dense_1/kernel": (128, 10),
    }


def layer(params, name, x, padding="VALID"):
    """The layer `name` by plain lax."""
    kernel, bias = params[name]["kernel"], params[name]["bias"]
    if kernel.ndim == 2:
        return x.reshape(len(x), -1) @ kernel + bias
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def simple_cnn(p, x):
    x = nn.relu(layer(p, "Conv_1", nn.relu(layer(p, "Conv_0", x))))
    return layer(p, "Dense_1", nn.relu(layer(p, "Dense_0", nn.max_pool(x, (2, 2), (2, 2)))))


def cnn(p, x):
    for name in ("Conv_0", "Conv_1"):
        x = nn.max_pool(nn.relu(layer(p, name, x)), (2, 2), (2, 2))
    return layer(p, "Dense_2", nn.relu(layer(p, "Dense_1", nn.relu(layer(p, "Dense_0", x)))))


def classic_lenet5(p, x):
    x = nn.avg_pool(jnp.tanh(layer(p, "Conv_0", x, "SAME")), (2, 2), (2, 2))
    x = nn.avg_pool(jnp.tanh(layer(p, "Conv_1", x)), (2, 2), (2, 2))
    return layer(p, "Dense_2", jnp.tanh(layer(p, "Dense_1", jnp.tanh(layer(p, "Dense_0", x)))))


def random_params(module, x, rng):
    """Parameters of the module's shapes, of the size that initialization gives; without compiling it."""
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)["params"]
    return jax.tree.map(lambda v: jnp.asarray(rng.normal(0, 0.1, v.shape), jnp.float32), shapes)


NETWORKS = {
    "simple_cnn": (SimpleCNN(features=(3, 4), hidden=8), simple_cnn, (8, 8, 3)),
    "cnn": (CNN(features=(4, 6), hidden=(8, 6)), cnn, (16, 16, 3)),
    "lenet5": (LeNet5(activation="tanh", pool="avg"), classic_lenet5, (28, 28, 1)),
}


@pytest.mark.parametrize(("module", "plain", "image"), NETWORKS.values(), ids=NETWORKS)
def test_a_network_gives_what_plain_lax_gives(module, plain, image, rng):
    x = jnp.asarray(rng.standard_normal((3, *image)), jnp.float32)
    params = random_params(module, x, rng)
    # Values of order one, sums of at most a few hundred float32 products.
    np.testing.assert_allclose(jax.jit(module.apply)({"params": params}, x), jax.jit(plain)(params, x), atol=2e-5)


def test_the_gradient_of_a_network_is_that_of_plain_lax(rng):
    module, plain, image = NETWORKS["simple_cnn"]
    x = jnp.asarray(rng.standard_normal((3, *image)), jnp.float32)
    params = random_params(module, x, rng)
    gradients = [
        jax.jit(jax.grad(lambda p, f=f: jnp.mean(f(p) ** 2)))(params)
        for f in (lambda p: module.apply({"params": p}, x), lambda p: plain(p, x))
    ]
    for a, b in zip(*map(jax.tree.leaves, gradients), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_clients_trained_together_get_what_each_gets_alone(rng):
    module = SimpleCNN(features=(3, 4), hidden=8)
    x = jnp.asarray(rng.standard_normal((2, 3, 8, 8, 3)), jnp.float32)
    params = [random_params(module, x[0], rng) for _ in range(2)]

    def step(p, x):
        return jax.tree.map(
            lambda v, d: v - 0.1 * d, p, jax.grad(lambda p: jnp.mean(module.apply({"params": p}, x)))(p)
        )

    together = jax.jit(jax.vmap(step))(jax.tree.map(lambda *v: jnp.stack(v), *params), x)
    for i in range(2):
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(jax.jit(step)(params[i], x[i])), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-6)  # one small step on values of order one


@pytest.mark.parametrize("setting", [{"activation": "elu"}, {"pool": "median"}, {"padding": "CIRCULAR"}])
def test_lenet5_names_a_setting_that_it_does_not_know(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}'; allowed are"):
        LeNet5(**setting)
