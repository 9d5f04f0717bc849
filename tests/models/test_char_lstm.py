"""The character LSTM: its size, flax's own cell as the oracle of values and gradients, and what 8 bits do to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax8 import adapters, codecs, models, trees
from fedjax8.build import build
from fedjax8.config import base_config, component
from fedjax8.errors import UserError
from fedjax8.models._lstm import LSTM
from fedjax8.numerics import scales
from fedjax8.types import Variables

STEPS, ROWS, FEATURES, UNITS = 7, 3, 5, 4


def random_like(shapes, rng):
    return jax.tree.map(lambda v: jnp.asarray(rng.normal(0, 0.7, v.shape), jnp.float32), shapes)


def as_flax(p):
    """Parameters of `LSTM` as those of flax's cell: a kernel for each gate, the bias beside the recurrent one."""
    cell = {}
    for n, gate in enumerate("ifgo"):
        columns = slice(n * UNITS, (n + 1) * UNITS)
        cell[f"i{gate}"] = {"kernel": p["input"]["kernel"][:, columns]}
        cell[f"h{gate}"] = {"kernel": p["recurrent"]["kernel"][:, columns], "bias": p["input"]["bias"][columns]}
    return {"cell": cell}


def ours(p, x):
    return LSTM(UNITS).apply({"params": p}, x.swapaxes(0, 1)).swapaxes(0, 1)


def flax(p, x):
    return nn.RNN(nn.OptimizedLSTMCell(UNITS)).apply({"params": as_flax(p)}, x)


@pytest.fixture
def layer(rng):
    """Parameters of a layer and sequences `[B, T, features]`."""
    x = jnp.asarray(rng.standard_normal((ROWS, STEPS, FEATURES)), jnp.float32)
    return random_like(jax.eval_shape(LSTM(UNITS).init, jax.random.key(0), x)["params"], rng), x


def test_a_layer_gives_the_values_and_gradients_of_flax(layer, rng):
    weights = jnp.asarray(rng.standard_normal((ROWS, STEPS, UNITS)), jnp.float32)

    def value(run):
        return lambda p, x: (jnp.sum(weights * run(p, x)), run(p, x))

    (_, h), gradients = jax.jit(jax.value_and_grad(value(ours), (0, 1), has_aux=True))(*layer)
    (_, expected), wanted = jax.jit(jax.value_and_grad(value(flax), (0, 1), has_aux=True))(*layer)
    # Float32 roundings of values of order one, carried through seven steps; gradients add a hundred such terms.
    np.testing.assert_allclose(h, expected, atol=2e-6)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(wanted), strict=True):
        assert np.abs(b).max() > 0.1
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_clients_with_kernels_of_their_own_get_what_each_gets_alone(rng, layer):
    params, x = layer
    clients = random_like(jax.tree.map(lambda v: jnp.zeros((2, *v.shape)), params), rng)
    gradient = jax.grad(lambda p: jnp.sum(ours(p, x) ** 2))
    together, alone = jax.jit(jax.vmap(gradient))(clients), jax.jit(gradient)
    for i in range(2):
        single = alone(jax.tree.map(lambda v: v[i], clients))
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(single), strict=True):
            np.testing.assert_allclose(a[i], b, atol=2e-5)  # sums in another order


def test_no_step_carries_an_array_of_the_size_of_the_recurrent_kernel(layer):
    params, x = layer
    text = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(ours(p, x) ** 2)))(params))
    flax_text = str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(flax(p, x) ** 2)))(params))
    # A gradient that is added up step by step is an addition of two such arrays.
    sums = [f"f32[{UNITS},{UNITS}] = add_any", f"f32[{UNITS},{4 * UNITS}] = add_any"]
    assert any(s in flax_text for s in sums) and not any(s in text for s in sums)


def test_a_layer_starts_as_flax_starts_it():
    params = LSTM(64).init(jax.random.key(0), jnp.zeros((1, 1, 100)))["params"]
    for gate in np.split(np.asarray(params["recurrent"]["kernel"]), 4, axis=1):
        np.testing.assert_allclose(gate.T @ gate, np.eye(64), atol=1e-5)  # float32 sums of 64 products
    # 25,600 draws: the deviation of a sample has a relative standard error of 1 / sqrt(2 * 25600) = 0.0044; four of it.
    assert np.std(params["input"]["kernel"]) == pytest.approx(0.1, rel=0.018)
    assert np.abs(params["input"]["kernel"]).max() < 0.1 * 2 / 0.879  # cut at two deviations of the uncut normal
    assert not np.any(params["input"]["bias"])


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        # embedding + two times (input kernel + recurrent kernel + bias) + output kernel and bias
        ({}, 90 * 8 + (8 * 1024 + 256 * 1024 + 1024) + (256 * 1024 + 256 * 1024 + 1024) + 256 * 90 + 90),
        ({"vocabulary": 5, "embedding": 3, "hidden": 6, "layers": 1}, 5 * 3 + (3 * 24 + 6 * 24 + 24) + 6 * 5 + 5),
    ],
)
def test_parameters_are_counted_exactly(settings, size):
    batch = {"x": jax.ShapeDtypeStruct((1, 80), jnp.int32)}
    made = jax.eval_shape(models.char_lstm(**settings).init, jax.random.key(0), batch).params
    assert sum(leaf.size for leaf in jax.tree.leaves(made)) == size
    assert size == 820_522 or settings


SMALL = {"vocabulary": 9, "embedding": 3, "hidden": 8}


@pytest.fixture
def text(rng):
    x, y = rng.integers(0, 9, (2, 4, 6))
    return {"x": jnp.asarray(x, jnp.int32), "y": jnp.asarray(y, jnp.int32), "mask": jnp.ones(4)}


def test_an_answer_depends_on_its_position_and_those_before(text):
    model = models.char_lstm(**SMALL)
    variables = jax.jit(model.init)(jax.random.key(0), text)
    run = jax.jit(lambda x: model.apply(variables, {"x": x})[0])
    changed = run(text["x"].at[:, 3].set((text["x"][:, 3] + 1) % 9)) != run(text["x"])
    assert changed.shape == (4, 6, 9)
    np.testing.assert_array_equal(np.any(np.asarray(changed), axis=(0, 2)), [False, False, False, True, True, True])


def test_in_8_bits_every_kernel_is_rounded_once_and_its_gradient_passes(text):
    model = models.char_lstm(**SMALL)
    quantized = adapters.qat(model, activations=False, gradients=None)
    variables = jax.jit(quantized.init)(jax.random.key(0), text)
    leaves = trees.named_leaves(variables.params)
    kernels = {"LSTM_0/input", "LSTM_0/recurrent", "LSTM_1/input", "LSTM_1/recurrent", "Dense_0"}
    assert {n.removesuffix("/kernel_clip") for n in leaves if n.endswith("kernel_clip")} == kernels

    def rounded(params, path=""):
        """The parameters without clips, kernels on the grid."""
        if not isinstance(params, dict):
            return scales.quantize(params, leaves[f"{path}_clip"], "e4m3fn") if f"{path}_clip" in leaves else params
        return {n: rounded(v, f"{path}/{n}".lstrip("/")) for n, v in params.items() if not n.endswith("_clip")}

    def step(model):
        return jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.loss(model.apply(Variables(p, {}), text)[0], text))))

    loss, gradients = step(quantized)(variables.params)
    expected, wanted = step(model)(rounded(variables.params))
    on_grid = trees.named_leaves(rounded(variables.params))
    assert all(np.any(leaves[f"{k}/kernel"] != on_grid[f"{k}/kernel"]) for k in kernels)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)  # the same numbers, summed in another order
    gradients = trees.named_leaves(gradients)
    for name, gradient in trees.named_leaves(wanted).items():  # clips lie at the largest weight: nothing is clipped
        np.testing.assert_allclose(gradients[name], gradient, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"compute": "emulated"}])
def test_a_recurrent_kernel_has_no_clip_for_an_input_that_is_not_rounded(settings, text):
    quantized = adapters.qat(models.char_lstm(**SMALL), **settings)
    variables = jax.jit(quantized.init)(jax.random.key(0), text)
    assert set(variables.params["LSTM_1"]["recurrent"]) == {"kernel", "kernel_clip"}
    assert set(variables.params["LSTM_1"]["input"]) == {"kernel", "kernel_clip", "bias", "input_clip"}
    if settings:
        gradient = jax.jit(jax.grad(lambda p: jnp.sum(quantized.apply(Variables(p, {}), text)[0] ** 2)))(
            variables.params
        )
        assert all(np.isfinite(x).all() and np.any(np.asarray(x)) for x in jax.tree.leaves(gradient["LSTM_0"]))


def test_a_message_takes_a_byte_for_each_weight_of_every_kernel():
    quantized, key = adapters.qat(models.char_lstm()), jax.random.key(0)
    params = jax.eval_shape(quantized.init, key, {"x": jax.ShapeDtypeStruct((1, 80), jnp.int32)}).params
    message, _ = jax.eval_shape(codecs.fp8().encode, key, (), {"params": params})
    weights = 8 * 1024 + 3 * 256 * 1024 + 256 * 90
    embedding, biases, clips = 90 * 8, 2 * 1024 + 90, 5 + 3  # of five kernels and the inputs of three
    sent = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(message))
    assert sent == weights + 4 * (embedding + biases + clips)


@pytest.mark.parametrize(
    ("batch", "says"),
    [
        ({"x": jnp.zeros((2, 3))}, r"integers \[B, T\], the numbers of symbols; got float32 \(2, 3\)"),
        ({"x": jnp.zeros((2, 3, 1), jnp.int32)}, r"got int32 \(2, 3, 1\)"),
    ],
)
def test_what_is_no_text_is_refused(batch, says):
    with pytest.raises(ValueError, match=says):
        models.char_lstm().init(jax.random.key(0), batch)


def test_a_layer_without_units_is_refused():
    with pytest.raises(ValueError, match="hidden is 0; it must be at least 1"):
        models.char_lstm(hidden=0)


def text_config(model):
    config = base_config()
    config.data = component("synthetic_text", num_clients=6, vocabulary=11, sequence_length=5, median=3.0, num_test=4)
    config.partition, config.num_clients, config.cohort_size = component("by_key"), 0, 2
    config.model = model
    return config


def test_a_config_takes_vocabulary_and_clients_from_the_text():
    experiment = build(text_config(component("char_lstm", hidden=8)))
    assert experiment.simulation.data.num_clients == 6
    made = jax.eval_shape(
        experiment.simulation.model.init, jax.random.key(0), {"x": jax.ShapeDtypeStruct((1, 5), jnp.int32)}
    )
    assert made.params["Embed_0"]["embedding"].shape == (11, 8)


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("mlp", None, r"outputs of shape \(11,\) a row, but synthetic_text has 5 labels a row \(try char_lstm\)"),
        ("char_lstm", "digits", "config.model does not fit rows of shape .* of digits: char_lstm takes integers"),
    ],
)
def test_a_model_for_other_labels_than_the_data_have_is_refused(model, data, says):
    config = text_config(component(model))
    if data:
        config.data, config.partition, config.num_clients = component(data), component("iid"), 5
    with pytest.raises(UserError, match=says):
        build(config)
