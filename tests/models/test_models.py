"""Models: sizes as published, and outputs that a few lines of lax and flax reproduce."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fedjax8 import models
from fedjax8.models._resnet import BasicBlock
from fedjax8.models.cnn import CNN
from fedjax8.models.kwt1 import KWT
from fedjax8.models.lenet5 import LeNet5
from fedjax8.models.matchboxnet import MatchboxNet
from fedjax8.models.simple_cnn import SimpleCNN
from fedjax8.types import Variables

# model, one example, kernels, numbers in them, numbers elsewhere
SIZES = {
    "mlp": (models.mlp(), (28, 28), 2, 158_800, 210),
    "two hidden layers": (models.mlp((16, 8), 3), (4, 5), 3, 472, 27),
    "logistic": (models.logistic(10), (28, 28, 1), 1, 7_840, 10),
    "feddyn, 10 classes": (models.cnn(), (32, 32, 3), 5, 797_248, 714),
    "feddyn, 100 classes": (models.cnn(100), (32, 32, 3), 5, 814_528, 804),
    "lenet5": (models.lenet5(), (28, 28, 1), 5, 61_470, 236),
    "lenet5, images of the paper": (models.lenet5(padding="VALID"), (32, 32, 1), 5, 61_470, 236),
    "simple cnn": (models.simple_cnn(), (32, 32, 3), 4, 1_626_208, 234),
    "resnet18": (models.resnet18(), (32, 32, 3), 21, 11_164_352, 9_610),
    "resnet18, 100 classes": (models.resnet18(100), (32, 32, 3), 21, 11_210_432, 9_700),
    "resnet18, 7x7": (models.resnet18(stem="7x7"), (32, 32, 3), 21, 11_172_032, 9_610),
    "resnet20": (models.resnet20(), (32, 32, 3), 20, 268_336, 269_722 - 268_336),
    "matchboxnet": (models.matchboxnet(), (128, 64, 1), 15, 76_288, 1_571),
    "matchboxnet, batch norm": (models.matchboxnet(norm="batch"), (128, 64), 15, 76_288, 1_571),
    "kwt1": (models.kwt1(), (98, 40), 50, 594_624, 14_179),
}


@pytest.mark.parametrize(("model", "example", "kernels", "in_kernels", "elsewhere"), SIZES.values(), ids=SIZES)
def test_parameters_are_counted_exactly(model, example, kernels, in_kernels, elsewhere):
    made = jax.eval_shape(model.init, jax.random.key(0), {"x": jax.ShapeDtypeStruct((1, *example), jnp.float32)})
    leaves = jax.tree_util.tree_leaves_with_path(made.params)
    sizes = [leaf.size for path, leaf in leaves if path[-1].key == "kernel"]
    assert (len(sizes), sum(sizes)) == (kernels, in_kernels)
    assert sum(leaf.size for _, leaf in leaves) - in_kernels == elsewhere
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


def convolution(x, kernel, stride=1, groups=1, dilation=1):
    """By plain lax, with half the kernel's reach as padding, on images or lines."""
    dims = x.ndim - 2
    layout = ("NHWC", "HWIO", "NHWC") if dims == 2 else ("NHC", "HIO", "NHC")
    padding = [(n // 2 * dilation,) * 2 for n in kernel.shape[:-2]]
    settings = {"rhs_dilation": (dilation,) * dims, "dimension_numbers": layout, "feature_group_count": groups}
    return lax.conv_general_dilated(x, kernel, (stride,) * dims, padding, **settings)


def group_norm(p, x, groups=2):
    grouped = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    centered = grouped - grouped.mean((1, 3), keepdims=True)
    normal = centered / jnp.sqrt((centered**2).mean((1, 3), keepdims=True) + 1e-5)
    return normal.reshape(x.shape) * p["scale"] + p["bias"]


def layer_norm(p, x):
    centered = x - x.mean(-1, keepdims=True)
    return centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def block_with_projection(p, x):
    y = nn.relu(group_norm(p["GroupNorm_0"], convolution(x, p["Conv_0"]["kernel"], 2)))
    y = group_norm(p["GroupNorm_1"], convolution(y, p["Conv_1"]["kernel"]))
    return nn.relu(y + group_norm(p["GroupNorm_2"], convolution(x, p["Conv_2"]["kernel"], 2)))


def block_with_padding(p, x):
    y = nn.relu(group_norm(p["GroupNorm_0"], convolution(x, p["Conv_0"]["kernel"], 2)))
    y = group_norm(p["GroupNorm_1"], convolution(y, p["Conv_1"]["kernel"]))
    zeros = jnp.zeros((*y.shape[:-1], y.shape[-1] - x.shape[-1]))
    return nn.relu(y + jnp.concatenate([x[:, ::2, ::2], zeros], axis=-1))


def matchboxnet(p, x):
    def separable(p, x, dilation=1):
        y = convolution(x, p["Conv_0"]["kernel"], groups=x.shape[-1], dilation=dilation)
        return group_norm(p["GroupNorm_0"], y @ p["Conv_1"]["kernel"][0])

    x = nn.relu(separable(p["SeparableBlock_0"], x))
    residual = p["SeparableBlock_1"]
    x = nn.relu(separable(residual, x) + group_norm(residual["GroupNorm_1"], x @ residual["Conv_2"]["kernel"][0]))
    x = nn.relu(separable(p["SeparableBlock_2"], x, dilation=2))
    x = nn.relu(group_norm(p["SeparableBlock_3"]["GroupNorm_0"], x @ p["SeparableBlock_3"]["Conv_0"]["kernel"][0]))
    return layer(p, "Dense_0", x.mean(1))


def kwt(p, x):
    """One layer with two heads, head by head."""
    x = x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]
    x = jnp.concatenate([jnp.tile(p["class_token"], (len(x), 1, 1)), x], axis=1) + p["position"]
    inner, width = p["TransformerLayer_0"], x.shape[-1]
    size, heads = width // 2, []
    for start in (0, size):
        q, k, v = (x @ inner["Dense_0"]["kernel"][:, i * width + start : i * width + start + size] for i in range(3))
        weights = jnp.exp(q @ k.transpose(0, 2, 1) / np.sqrt(size))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    attended = jnp.concatenate(heads, -1) @ inner["Dense_1"]["kernel"] + inner["Dense_1"]["bias"]
    x = layer_norm(inner["LayerNorm_0"], x + attended)
    y = x @ inner["Dense_2"]["kernel"] + inner["Dense_2"]["bias"]
    y = y * 0.5 * (1 + lax.erf(y / np.sqrt(2)))
    y = y @ inner["Dense_3"]["kernel"] + inner["Dense_3"]["bias"]
    return layer(p, "Dense_1", layer_norm(inner["LayerNorm_1"], x + y)[:, 0])


NETWORKS = {
    "simple_cnn": (SimpleCNN(features=(3, 4), hidden=8), simple_cnn, (8, 8, 3)),
    "cnn": (CNN(features=(4, 6), hidden=(8, 6)), cnn, (16, 16, 3)),
    "lenet5": (LeNet5(activation="tanh", pool="avg"), classic_lenet5, (28, 28, 1)),
    "residual block, projection": (BasicBlock(6, 2), block_with_projection, (7, 8, 4)),
    "residual block, padding": (BasicBlock(6, 2, shortcut="padding"), block_with_padding, (7, 8, 4)),
    "matchboxnet": (MatchboxNet(3, 4, 6, taps=(3, 5, 3)), matchboxnet, (9, 8)),
    "kwt": (KWT(3, layers=1, width=8, mlp=12, heads=2), kwt, (5, 6)),
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


CLIENTS = 3
SMALL = {
    "resnet18": (models.resnet18(3, widths=(4, 6), blocks=1), (8, 8, 3)),
    "resnet18, 7x7": (models.resnet18(3, stem="7x7", widths=(4, 6), blocks=1), (16, 16, 3)),
    "resnet20": (models.resnet20(3, widths=(4, 6), blocks=1), (8, 8, 3)),
    "matchboxnet": (models.matchboxnet(3, width=4, outer_width=6, taps=(3, 5, 3)), (9, 8)),
    "matchboxnet, batch norm": (models.matchboxnet(3, width=4, outer_width=6, taps=(3, 5, 3), norm="batch"), (9, 8)),
    "kwt1": (models.kwt1(3, layers=1, width=8, mlp=12), (5, 6)),
}


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("model", "example"), SMALL.values(), ids=SMALL)
def test_a_step_of_many_clients_holds_no_grouped_convolution(model, example, platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)  # chooses the forms; nothing is run
    key, x = jax.random.key(0), jnp.zeros((CLIENTS, 2, *example))
    batch = {"x": x, "y": jnp.zeros((CLIENTS, 2), jnp.int32)}
    variables = jax.eval_shape(jax.vmap(model.init), jax.random.split(key, CLIENTS), batch)

    def step(variables, batch):
        def loss(params):
            return model.loss(model.apply(Variables(params, variables.state), batch, train=True)[0], batch).mean()

        return jax.tree.map(lambda p, d: p - 0.1 * d, variables.params, jax.grad(loss)(variables.params))

    text = str(jax.make_jaxpr(jax.vmap(step))(variables, batch))
    groups = [int(count) for count in re.findall(r"(?:feature|batch)_group_count=(\d+)", text)]
    assert max(groups, default=0) <= 1
    if platform == "gpu":  # there, matmuls only
        assert not groups


def test_batch_norm_keeps_its_statistics_in_the_state():
    batch = {"x": jnp.zeros((1, 9, 8))}
    states = [
        jax.eval_shape(SMALL[name][0].init, jax.random.key(0), batch).state
        for name in ("matchboxnet", "matchboxnet, batch norm")
    ]
    assert [len(jax.tree.leaves(state)) for state in states] == [0, 2 * 5]  # mean and variance of five norms


REFUSED = {
    "stem is '5x5'; allowed are 3x3, 7x7": lambda: models.resnet18(stem="5x5"),
    "groups must divide every width; got 3 groups and width 64": lambda: models.resnet18(groups=3),
    "groups must divide every width; got 5 groups and width 16": lambda: models.resnet20(groups=5),
    "groups must divide every width; got 3 groups and width 128": lambda: models.matchboxnet(width=3, groups=3),
    "norm is 'layer'; allowed are group, batch": lambda: models.matchboxnet(norm="layer"),
    "taps needs at least": lambda: models.matchboxnet(taps=(3,)),
    "heads must divide the width; got 3 heads and width 64": lambda: models.kwt1(heads=3),
}


@pytest.mark.parametrize(("message", "make"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_cannot_work_is_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("setting", [{"activation": "elu"}, {"pool": "median"}, {"padding": "CIRCULAR"}])
def test_lenet5_names_a_setting_that_it_does_not_know(setting):
    (name, value), *_ = setting.items()
    with pytest.raises(ValueError, match=f"{name} is '{value}'; allowed are"):
        LeNet5(**setting)
