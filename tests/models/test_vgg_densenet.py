"""The networks of federated dynamic averaging: LeNet-5 as it has it, VGG16* and DenseNet, layer by layer."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fedjax8 import models, trees
from fedjax8.build import build_optimizer
from fedjax8.config import base_config, override
from fedjax8.models._densenet import DenseNet
from fedjax8.models.lenet5 import LeNet5
from fedjax8.models.vgg16_star import VGG16Star
from fedjax8.types import Variables

LENET5 = {"activation": "tanh", "pool": "avg", "kernel_init": "glorot_uniform"}
BY_LAYER = {
    "lenet5": (models.lenet5(**LENET5), [156, 2416, 48120, 10164, 850], 61_706),
    "vgg16_star": (
        models.vgg16_star(),
        [640, 36928, 73856, 147584, 295168, 590080, 1180160, 262656, 5130],
        2_592_202,
    ),
}
# model, layers of each block, trained parameters, batch statistics, convolutions
DENSENETS = {
    "densenet121": (models.densenet121(), (6, 12, 24, 16), 6_964_106, 83_648, 120),
    "densenet201": (models.densenet201(), (6, 12, 48, 32), 18_112_138, 229_056, 200),
}


def shapes_of(model, *image):
    return jax.eval_shape(model.init, jax.random.key(0), {"x": jax.ShapeDtypeStruct((1, *image), jnp.float32)})


@pytest.mark.parametrize(("model", "layers", "total"), BY_LAYER.values(), ids=BY_LAYER)
def test_every_layer_has_the_published_number_of_parameters(model, layers, total):
    made = shapes_of(model, 28, 28, 1)
    sizes = {name: sum(x.size for x in jax.tree.leaves(layer)) for name, layer in made.params.items()}
    assert [sizes[name] for name in sorted(sizes)] == layers  # Conv_0 ... before Dense_0 ...
    assert sum(layers) == total and made.state == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "blocks", "trained", "statistics", "convolutions"), DENSENETS.values(), ids=DENSENETS
)
def test_a_densenet_has_the_published_size_and_its_statistics_are_no_parameters(
    model, blocks, trained, statistics, convolutions
):
    made = shapes_of(model, 32, 32, 3)
    params, state = trees.named_leaves(made.params), trees.named_leaves(made.state)
    assert sum(x.size for x in params.values()) == trained
    assert sum(x.size for x in state.values()) == statistics
    assert sum(len(x.shape) == 4 for x in params.values()) == convolutions
    assert {x.dtype for x in (*params.values(), *state.values())} == {jnp.dtype("float32")}

    # Layer by layer: a norm has a scale and a bias a channel, and convolutions are without bias.
    size = lambda name: sum(x.size for path, x in params.items() if path.split("/")[0] == name)
    assert size("Conv_0") == 7 * 7 * 3 * 64
    channels, layer = 64, 0
    for block, layers in enumerate(blocks):
        if block > 0:
            assert size(f"Transition_{block - 1}") == 2 * channels + channels * (channels // 2)
            channels //= 2
        for _ in range(layers):
            assert size(f"DenseLayer_{layer}") == 2 * channels + channels * 128 + 2 * 128 + 3 * 3 * 128 * 32
            channels, layer = channels + 32, layer + 1
    assert size("Dense_0") == channels * 10 + 10


def calls(module, *image):
    """(class, owner, module) of every inner layer, in the order in which a pass meets them."""
    met = []

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Conv | nn.Dense | nn.BatchNorm | nn.Dropout):
            met.append((type(context.module).__name__, "/".join(context.module.path[:-1]), context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        jax.eval_shape(
            lambda x: module.init(jax.random.key(0), x),
            jax.ShapeDtypeStruct((1, *image), jnp.float32),
        )
    return met


def test_densenet_drops_after_every_convolution_of_a_dense_layer_and_nowhere_else():
    met = calls(DenseNet(10, (2, 1), growth=2), 8, 8, 3)
    layer = ["BatchNorm", "Conv", "Dropout"] * 2
    order = ["Conv", "BatchNorm", *layer, *layer, "BatchNorm", "Conv", *layer, "BatchNorm", "Dense"]
    assert [kind for kind, *_ in met] == order
    assert {owner.split("_")[0] for kind, owner, _ in met if kind == "Dropout"} == {"DenseLayer"}
    assert {m.rate for kind, _, m in met if kind == "Dropout"} == {0.2}
    assert {m.epsilon for kind, _, m in met if kind == "BatchNorm"} == {1.001e-5}


def test_vgg16_star_drops_half_after_every_dense_layer_but_the_last():
    met = calls(VGG16Star(), 28, 28, 1)
    assert [kind for kind, *_ in met] == ["Conv"] * 6 + ["Dense", "Dropout"] * 2 + ["Dense"]
    assert {m.rate for kind, _, m in met if kind == "Dropout"} == {0.5}


# Plain forms of both, by lax.


def convolution(x, kernel, stride=1):
    padding = [(n // 2, n // 2) for n in kernel.shape[:2]]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )


def vgg(p, x):
    for block in range(2):
        for conv in (2 * block, 2 * block + 1):
            x = nn.relu(convolution(x, p[f"Conv_{conv}"]["kernel"]) + p[f"Conv_{conv}"]["bias"])
        x = nn.max_pool(x, (2, 2), (2, 2))
    x = x.reshape(len(x), -1)
    for dense in range(3):
        x = x @ p[f"Dense_{dense}"]["kernel"] + p[f"Dense_{dense}"]["bias"]
        x = nn.relu(x) if dense < 2 else x
    return x


def densenet(p, s, x):
    """Two blocks of one layer, from given statistics."""

    def norm_relu(p, s, x):
        return nn.relu((x - s["mean"]) / jnp.sqrt(s["var"] + 1.001e-5) * p["scale"] + p["bias"])

    def layer(p, s, x):
        y = convolution(norm_relu(p["BatchNorm_0"], s["BatchNorm_0"], x), p["Conv_0"]["kernel"])
        y = convolution(norm_relu(p["BatchNorm_1"], s["BatchNorm_1"], y), p["Conv_1"]["kernel"])
        return jnp.concatenate([x, y], -1)

    x = norm_relu(p["BatchNorm_0"], s["BatchNorm_0"], convolution(x, p["Conv_0"]["kernel"], 2))
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # zeros, as Keras pads here: after ReLU nothing is below
    x = nn.max_pool(x, (3, 3), (2, 2))
    x = layer(p["DenseLayer_0"], s["DenseLayer_0"], x)
    t, u = p["Transition_0"], s["Transition_0"]
    x = convolution(norm_relu(t["BatchNorm_0"], u["BatchNorm_0"], x), t["Conv_0"]["kernel"])
    x = x.reshape(len(x), x.shape[1] // 2, 2, x.shape[2] // 2, 2, -1).mean((2, 4))
    x = layer(p["DenseLayer_1"], s["DenseLayer_1"], x)
    x = norm_relu(p["BatchNorm_1"], s["BatchNorm_1"], x).mean((1, 2))
    return x @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"]


SMALL = {
    "vgg16_star": (models.vgg16_star(3, widths=(3, 4), hidden=(8, 8)), (9, 9, 2)),
    "densenet121": (models.densenet121(3, blocks=(1, 1), growth=2), (16, 16, 3)),
}


def random_variables(model, image, rng):
    """Variables of the size that initialization gives, but none of them a constant; without compiling it."""

    def draw(path, x):
        noise = 0.2 * rng.uniform(size=x.shape)
        if path[-1].key == "kernel":
            return jnp.asarray(rng.normal(0, np.sqrt(2 * x.shape[-1] / x.size), x.shape), jnp.float32)
        return jnp.asarray(noise + (path[-1].key in ("scale", "var")), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes_of(model, *image))


@pytest.fixture(scope="module", params=SMALL)
def network(request):
    """Name, variables, batch, `step(params, key) -> ((loss, state), gradients)`, `evaluate(key) -> outputs, state`."""
    model, image = SMALL[request.param]
    rng = np.random.default_rng(0)
    variables = random_variables(model, image, rng)
    x = jnp.asarray(rng.normal(0.3, 1.0, (6, *image)), jnp.float32)
    batch = {"x": x, "y": jnp.asarray([0, 1, 2, 0, 1, 2]), "mask": jnp.ones(6)}

    def loss(params, key):
        outputs, state = model.apply(Variables(params, variables.state), batch, key=key, train=True)
        return jnp.mean(model.loss(outputs, batch)), state

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    evaluate = jax.jit(lambda key: model.apply(variables, batch, key=key))
    return request.param, variables, batch, step, evaluate


def test_a_network_in_evaluation_gives_what_plain_lax_gives_and_keeps_its_state(network):
    name, variables, batch, _, evaluate = network
    plain = functools.partial(densenet, s=variables.state["batch_stats"]) if name == "densenet121" else vgg
    outputs, state = evaluate(jax.random.key(0))
    # Sums of at most a few hundred float32 products of order one.
    np.testing.assert_allclose(outputs, jax.jit(plain)(variables.params, x=batch["x"]), rtol=1e-4, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, state, variables.state)


def test_a_training_step_has_finite_gradients_that_reach_every_parameter_and_lower_the_loss(network):
    _, variables, _, step, _ = network
    key = jax.random.key(3)
    (before, _), gradients = step(variables.params, key)
    for name, gradient in trees.named_leaves(gradients).items():
        assert np.isfinite(gradient).all() and np.any(np.asarray(gradient) != 0), name
    (after, _), _ = step(jax.tree.map(lambda p, g: p - 0.001 * g, variables.params, gradients), key)
    assert float(after) < float(before)


def test_dropout_is_drawn_from_the_key_in_training_and_not_at_all_in_evaluation(network):
    _, variables, _, step, evaluate = network
    one, again, other = (float(step(variables.params, jax.random.key(seed))[0][0]) for seed in (1, 1, 2))
    assert one == again != other
    np.testing.assert_array_equal(evaluate(jax.random.key(1))[0], evaluate(jax.random.key(2))[0])


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize(("model", "image"), SMALL.values(), ids=SMALL)
def test_a_step_of_many_clients_holds_no_grouped_convolution(model, image, platform, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: platform)  # chooses the forms; nothing is run
    keys, batch = jax.random.split(jax.random.key(0), 3), {"x": jnp.zeros((3, 2, *image)), "y": jnp.zeros((3, 2), int)}
    variables = jax.eval_shape(jax.vmap(model.init), keys, batch)

    def gradient(variables, batch, key):
        def loss(params):
            outputs, _ = model.apply(Variables(params, variables.state), batch, key=key, train=True)
            return model.loss(outputs, batch).mean()

        return jax.grad(loss)(variables.params)

    text = str(jax.make_jaxpr(jax.vmap(gradient))(variables, batch, keys))
    groups = [int(count) for count in re.findall(r"(?:feature|batch)_group_count=(\d+)", text)]
    assert max(groups, default=0) <= 1
    assert "dot_general" in text and (platform == "cpu" or not groups)  # elsewhere than on CPUs, matmuls only


@pytest.mark.parametrize("network", ["densenet121"], indirect=True)
def test_running_statistics_move_by_a_hundredth_towards_the_batch(network):
    _, variables, batch, step, _ = network
    (_, state), _ = step(variables.params, jax.random.key(1))
    stem = np.asarray(convolution(batch["x"], variables.params["Conv_0"]["kernel"], 2), np.float64)
    old, new = (v["batch_stats"]["BatchNorm_0"] for v in (variables.state, state))
    # Float32 sums of 384 values of order one.
    np.testing.assert_allclose(new["mean"], 0.99 * old["mean"] + 0.01 * stem.mean((0, 1, 2)), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(new["var"], 0.99 * old["var"] + 0.01 * stem.var((0, 1, 2)), rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(variables.state), strict=True):
        assert np.any(np.asarray(a) != np.asarray(b))


def started(module, *image):
    """What the initializer of every layer with a kernel draws for one shape; its biases are zeros."""
    layers = [m for kind, _, m in calls(module, *image) if kind in ("Conv", "Dense")]
    assert not any(np.any(m.bias_init(jax.random.key(5), (9,))) for m in layers if m.use_bias)
    return [np.asarray(m.kernel_init(jax.random.key(5), KERNEL)) for m in layers]


KERNEL = (5, 5, 8, 20)
FAN_IN, FAN_OUT = 5 * 5 * 8, 5 * 5 * 20


@pytest.mark.parametrize("module", [LeNet5(**LENET5), VGG16Star()], ids=["lenet5", "vgg16_star"])
def test_kernels_start_glorot_uniform_and_biases_at_zero(module):
    limit = np.sqrt(6 / (FAN_IN + FAN_OUT))
    for kernel in started(module, 28, 28, 1):
        assert np.abs(kernel).max() <= limit * (1 + 1e-6)  # rounding of the limit to float32
        # The kurtosis of a uniform law is 1.8: a sample's deviation is off by sqrt(0.8 / 4n); five of them.
        assert abs(kernel.std() / (limit / np.sqrt(3)) - 1) < 5 * np.sqrt(0.8 / 4 / kernel.size)


def test_kernels_of_densenet_start_he_normal_and_biases_at_zero():
    deviation = np.sqrt(2 / FAN_IN)
    for kernel in started(DenseNet(10, (1, 1), growth=2), 8, 8, 3):
        # A normal law cut at two deviations and so much wider that its own deviation is He's; that of the standard
        # normal law cut there is sqrt(1 - 4 pdf(2) / (2 cdf(2) - 1)) = 0.87963.
        assert 2 * deviation < np.abs(kernel).max() <= 2 * deviation / 0.87962
        # Its kurtosis is 2.37: sqrt(1.37 / 4n) for a sample's deviation; five of them.
        assert abs(kernel.std() / deviation - 1) < 5 * np.sqrt(1.37 / 4 / kernel.size)


def optimizer(*settings):
    """The clients' optimizer of a command line."""
    config = base_config()
    override(config, [tuple(s.removeprefix("config.").split("=")) for s in settings])
    return build_optimizer(config.client.optimizer, config.client.weight_decay)


def test_the_l2_penalty_of_the_experiments_is_a_weight_decay_of_twice_its_factor():
    params = random_variables(*SMALL["densenet121"], np.random.default_rng(0)).params

    def penalty(params):
        return 1e-4 * sum(jnp.sum(x**2) for path, x in trees.named_leaves(params).items() if path.endswith("kernel"))

    made = optimizer(
        "config.client.optimizer.name=sgd",
        "config.client.optimizer.learning_rate=0.1",
        "config.client.optimizer.momentum=0.9",
        "config.client.optimizer.nesterov=True",
        "config.client.weight_decay=2e-4",
    )
    updates, _ = jax.jit(lambda p: made.update(trees.zeros_like(p), made.init(p), p))(params)
    # Nesterov's first step from rest is 1 + momentum times the gradient.
    expected = jax.tree.map(lambda g: -0.1 * 1.9 * g, jax.jit(jax.grad(penalty))(params))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=0), updates, expected)


def test_epsilon_of_adam_is_set_from_the_command_line():
    made = optimizer(
        "config.client.optimizer.name=adam",
        "config.client.optimizer.learning_rate=1e-3",
        "config.client.optimizer.eps=1e-7",
    )
    gradient = jnp.float32(1e-7)
    update, _ = made.update(gradient, made.init(gradient), gradient)
    np.testing.assert_allclose(update, -1e-3 * 1e-7 / (1e-7 + 1e-7), rtol=1e-4)  # float32, 1 - 0.999 among it


REFUSED = {
    "dropout is 1.0; it must be at least 0 and below 1": lambda: models.vgg16_star(dropout=1.0),
    "dropout is -0.1; it must be at least 0 and below 1": lambda: models.densenet121(dropout=-0.1),
    "growth is 0; it must be at least 1": lambda: models.densenet201(growth=0),
    r"blocks holds the layers of each dense block, at least 1; got \(\)": lambda: models.densenet121(blocks=()),
    r"blocks holds the layers of each dense block, at least 1; got \(2, 0\)": lambda: models.densenet201(blocks=(2, 0)),
    "images of 28x28 are too small for 4 blocks": lambda: shapes_of(
        models.densenet121(blocks=(1, 1, 1, 1), growth=2), 28, 28, 1
    ),
    "kernel_init is 'he_normal'; allowed are lecun_normal, glorot_uniform": lambda: models.lenet5(
        kernel_init="he_normal"
    ),
}


@pytest.mark.parametrize(("message", "make"), REFUSED.items(), ids=REFUSED)
def test_a_setting_that_cannot_work_is_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


def test_four_blocks_take_images_of_29x29():
    made = shapes_of(models.densenet121(blocks=(1, 1, 1, 1), growth=2), 29, 29, 1)
    assert made.params["Dense_0"]["kernel"].shape == (4, 10)  # 4 + 2, 3 + 2, 2 + 2 and 2 + 2 features
