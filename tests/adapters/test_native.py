"""Quantized products on 8-bit operands: the numbers of the simulated ones, what is handed over, what is kept, where."""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fedjax8.adapters._products import quantized_product
from fedjax8.adapters.qat import qat
from fedjax8.build import build
from fedjax8.config import base_config
from fedjax8.errors import UserError
from fedjax8.models.linen import from_linen
from fedjax8.models.products import conv_product, dot_product
from fedjax8.numerics import fake_quantize, get_format, quantize, quantize_gradient
from fedjax8.numerics.scales import max_abs
from fedjax8.types import Variables

FORMAT, GRADIENTS = get_format("e4m3fn"), get_format("e5m2")

PLANE = {"window_strides": (2, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
LINE = {"window_strides": (2,), "padding": "SAME", "dimension_numbers": ("NHC", "HIO", "NHC")}
LAYERS = {
    "dense": ((6, 20), (20, 5), None),
    "strided conv": ((2, 7, 6, 3), (3, 3, 3, 4), PLANE),
    "1-D conv": ((2, 9, 3), (4, 3, 5), LINE),
    "depthwise conv": ((2, 6, 5, 4), (3, 3, 1, 4), PLANE | {"feature_group_count": 4}),
}
# Whether gradients are rounded does not depend on the product, nor do clients under vmap on how many axes it has.
BACK = [(case, GRADIENTS) for case in LAYERS] + [(case, None) for case in ("dense", "strided conv")]
MAPPED = ("dense", "strided conv", "depthwise conv")


def layer(case, rng, clients=()):
    """A product, and (x, kernel, input clip, kernel clip), dy. Both clips cut off the largest values."""
    x_shape, kernel_shape, settings = LAYERS[case]
    x, kernel = (rng.normal(size=(*clients, *s)).astype(np.float32) for s in (x_shape, kernel_shape))
    x_of_one, kernel_of_one = (jax.ShapeDtypeStruct(s, np.float32) for s in (x_shape, kernel_shape))
    if settings is None:
        product = dot_product(2, 2, (((1,), (0,)), ((), ())))
    else:
        product = conv_product(lax.conv_general_dilated, x_of_one, kernel_of_one, **settings)
    y = jax.eval_shape(product.forward, x_of_one, kernel_of_one)
    dy = (1e-3 * rng.normal(size=(*clients, *y.shape))).astype(np.float32)
    beta, alpha = np.full(clients, 1.4, np.float32), np.full(clients, 1.1, np.float32)
    for values, clip in ((x, beta), (kernel, alpha)):
        assert np.any(np.abs(values) > clip.max())
    return product, (x, kernel, beta, alpha), dy


def with_gradients(f, args, dy):
    """(y, dx, dkernel, d input clip, d kernel clip)."""
    y, pull = jax.vjp(f, *args)
    return (y, *pull(dy))


def run(product, back, eight_bit, args, dy):
    f = lambda *args: quantized_product(product, *args, FORMAT, back, eight_bit)
    return with_gradients(f, args, dy)


def composed(product, back, args, dy):
    """The same from the straight-through functions and JAX's derivative of the product."""

    def f(x, kernel, beta, alpha):
        y = product.forward(fake_quantize(x, beta, FORMAT), fake_quantize(kernel, alpha, FORMAT))
        return y if back is None else quantize_gradient(y, back)

    return with_gradients(f, args, dy)


def rounding_errors(product, back, args, dy):
    """By how much (y, dx, dkernel, d input clip, d kernel clip) can differ between two orders of the same sums.

    A float32 sum of n products in any order is off by n * 2^-24 of the sum of their magnitudes. A factor in float32 is
    off by three roundings; codes are exact, and the scale of their sum is off by six. So two ways differ by
    2n + 12 of them at most, (n + 6) * 2^-23. A clip's gradient is a sum over gradients that already differ.
    """
    x, kernel, beta, alpha = args
    x_on_grid, kernel_on_grid = quantize(x, beta, FORMAT), quantize(kernel, alpha, FORMAT)
    dy = dy if back is None else quantize(dy, max_abs(dy), back)

    def of_sums(multiply, a, b):
        terms = multiply(jnp.ones_like(a), jnp.ones_like(b)).max()
        magnitude = multiply(jnp.abs(a), jnp.abs(b))
        return (terms + 6) * 2.0**-23 * magnitude, magnitude

    def of_clip(value, on_grid, clip, error, magnitude):
        factor = jnp.where(jnp.abs(value) <= clip, jnp.abs(on_grid - value) / clip, 1.0)
        return jnp.sum(factor * (error + (value.size + 6) * 2.0**-23 * magnitude))

    y_error, _ = of_sums(product.forward, x_on_grid, kernel_on_grid)
    dx_error, dx = of_sums(product.input_gradient, dy, kernel_on_grid)
    dkernel_error, dkernel = of_sums(product.kernel_gradient, x_on_grid, dy)
    dbeta_error = of_clip(x, x_on_grid, beta, dx_error, dx)
    dalpha_error = of_clip(kernel, kernel_on_grid, alpha, dkernel_error, dkernel)
    return y_error, dx_error, dkernel_error, dbeta_error, dalpha_error


def assert_within(got, want, errors):
    for a, b, error in zip(*jax.device_get((got, want, errors)), strict=True):
        assert a.shape == b.shape
        assert np.any(b != 0.0)
        assert np.all(np.abs(a - b) <= error)


@pytest.mark.parametrize(
    ("case", "back"), BACK, ids=[f"{case}, {'e5m2' if back else 'float32'} gradients" for case, back in BACK]
)
def test_values_and_gradients_on_8_bit_operands_are_the_simulated_ones_and_those_of_the_parts(case, back, rng):
    product, args, dy = layer(case, rng)

    @jax.jit
    def all_ways(args, dy):
        simulated, emulated = (run(product, back, eight_bit, args, dy) for eight_bit in (False, True))
        return simulated, emulated, composed(product, back, args, dy), rounding_errors(product, back, args, dy)

    simulated, emulated, parts, errors = all_ways(args, dy)
    assert_within(simulated, parts, errors)
    assert_within(emulated, parts, errors)
    assert_within(emulated, simulated, errors)
    for (value, clip), gradient in zip(((args[0], args[2]), (args[1], args[3])), emulated[1:3], strict=True):
        np.testing.assert_array_equal(np.asarray(gradient)[np.abs(value) > clip], 0.0)


@pytest.mark.parametrize("case", MAPPED)
def test_clients_under_vmap_get_their_own_clips_and_gradient_scales(case, rng):
    product, (x, kernel, beta, alpha), dy = layer(case, rng, clients=(3,))
    own = np.float32([1.0, 1.2, 0.7])
    args, dy = (x, kernel, own * beta, own[::-1] * alpha), dy * np.reshape(own, (3,) + (1,) * (dy.ndim - 1))

    @jax.jit
    def both_ways(args, dy):
        together = jax.vmap(functools.partial(run, product, GRADIENTS, True))(args, dy)
        alone = lax.map(lambda one: run(product, GRADIENTS, False, *one), (args, dy))
        return together, alone, lax.map(lambda one: rounding_errors(product, GRADIENTS, *one), (args, dy))

    together, alone, errors = jax.device_get(both_ways(args, dy))
    for client in range(3):
        assert_within(*jax.tree.map(lambda v, client=client: v[client], (together, alone, errors)))


@pytest.mark.parametrize("eight_bit", [False, True], ids=["simulated", "emulated"])
@pytest.mark.parametrize("case", ["dense", "strided conv"])
def test_no_gradient_in_is_no_gradient_out(case, eight_bit, rng):
    product, args, dy = layer(case, rng)
    _, *gradients = jax.jit(functools.partial(run, product, GRADIENTS, eight_bit))(args, np.zeros_like(dy))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)


# Whole models.


class DenseNet(nn.Module):
    """Two dense layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(nn.relu(nn.Dense(8)(x.reshape(len(x), -1))))


class ConvNet(nn.Module):
    """A strided, perhaps a depthwise and a one-dimensional convolution, then a dense layer."""

    depthwise: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3), strides=2, name="strided")(x))
        if self.depthwise:
            x = nn.relu(nn.Conv(4, (3, 3), feature_group_count=4, name="depthwise")(x))
        x = nn.relu(nn.Conv(3, (3,), name="line")(x.reshape(len(x), -1, 4)))
        return nn.Dense(4, name="dense")(x.reshape(len(x), -1))


NETS = {"dense": DenseNet, "conv": lambda: ConvNet(depthwise=True)}
MOST_TERMS, MOST_PRODUCTS = 64, 8
"""Of any sum in these models (examples times pixels), and on the way from a parameter to the loss and back."""


@pytest.fixture
def batch(rng):
    x = rng.standard_normal((4, 7, 7, 2)).astype(np.float32)
    return {"x": x, "y": np.int32([0, 1, 2, 3]), "mask": np.ones(4, np.float32)}


def start(model, batch):
    """Its first variables; one program, not one per operation."""
    return jax.jit(model.init)(jax.random.key(0), batch)


def loss_of(model, batch, multiply=None):
    def loss(params):
        outputs, _ = model.apply(Variables(params, {}), batch, train=True, multiply=multiply)
        return jnp.mean(model.loss(outputs, batch)), outputs

    return loss


def tightened(params):
    """Clips that cut something off, for inputs and kernels alike."""
    return jax.tree_util.tree_map_with_path(lambda path, v: 0.7 * v if "clip" in str(path[-1]) else v, params)


@pytest.mark.parametrize(("net", "gradients"), [("dense", "e5m2"), ("conv", None), ("conv", "e5m2")])
def test_a_model_and_all_its_gradients_are_the_same_on_8_bit_operands_and_from_the_parts(net, gradients, batch):
    base = from_linen(NETS[net]())
    simulated = qat(base, "e4m3fn", gradients=gradients)
    emulated = qat(base, "e4m3fn", gradients=gradients, compute="emulated")

    def by_parts(params):
        def multiply(path, product, x, kernel):
            node = params[path]
            x, kernel = fake_quantize(x, node["input_clip"], FORMAT), fake_quantize(kernel, node["kernel_clip"], FORMAT)
            y = product.forward(x, kernel)
            return y if gradients is None else quantize_gradient(y, gradients)

        plain = {path: {n: v for n, v in node.items() if "clip" not in n} for path, node in params.items()}
        return loss_of(base, batch, multiply)(plain)

    @jax.jit
    def all_ways(params):
        losses = by_parts, loss_of(simulated, batch), loss_of(emulated, batch)
        return [jax.value_and_grad(loss, has_aux=True)(params) for loss in losses]

    parts, *others = jax.device_get(all_ways(tightened(start(simulated, batch).params)))
    clips = [node["input_clip"] for node in parts[1].values()]
    assert np.all(np.asarray(clips) != 0.0)  # that of the first layer too
    # A sum that differs in its last bits could move a later input over the middle between two grid points, a change by
    # a sixteenth; with this seed none lies so near.
    for other in others:
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(parts), strict=True):
            np.testing.assert_allclose(a, b, atol=MOST_PRODUCTS * (MOST_TERMS + 6) * 2.0**-23 * np.abs(b).max(), rtol=0)


def test_a_training_step_multiplies_8_bit_numbers_in_every_layer_forward_and_backward(batch):
    model = qat(from_linen(ConvNet()), "e4m3fn", gradients="e5m2", compute="emulated")
    params = jax.eval_shape(model.init, jax.random.key(0), batch).params

    def step(params):
        gradients = jax.grad(loss_of(model, batch), has_aux=True)(params)[0]
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    text = jax.jit(step).lower(params).as_text()
    signature = r"stablehlo\.dot_general.*: \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>"
    found = [tuple(shape.split("x")[-1] for shape in match) for match in re.findall(signature, text)]
    forward = [types for types in found if types == ("f8E4M3FN", "f8E4M3FN", "f32")]
    backward = [types for types in found if sorted(types) == ["f32", "f8E4M3FN", "f8E5M2"] and types[2] == "f32"]
    assert (len(forward), len(backward), len(found)) == (3, 6, 9)
    assert "stablehlo.convolution" not in text
    # At the default precision GPUs would add 8-bit products up in less than float32.
    assert len(re.findall(r"stablehlo\.dot_general.*precision = \[HIGHEST, HIGHEST\]", text)) == 9


def kept_bytes(f, params):
    """Bytes that the backward pass needs of the forward pass, the parameters themselves not among them."""
    _, pull = jax.vjp(f, params)
    buffers = {v.unsafe_buffer_pointer(): v.nbytes for v in jax.tree.leaves(pull)}
    ours = {v.unsafe_buffer_pointer() for v in jax.tree.leaves(params)}
    return sum(size for pointer, size in buffers.items() if pointer not in ours)


@pytest.mark.parametrize("compute", ["simulated", "emulated"])
def test_the_backward_pass_needs_at_most_a_byte_more_per_input_and_kernel_element(compute, batch):
    """Than that of the float32 model: what is kept are arrays that training keeps anyway, or 8-bit copies."""
    base = from_linen(ConvNet())
    model = qat(base, "e4m3fn", gradients="e5m2", compute=compute)
    elements = {}

    def count(path, product, x, kernel):
        elements[path] = x.size + kernel.size
        return product.forward(x, kernel)

    plain, variables = start(base, batch), start(model, batch)
    jax.eval_shape(functools.partial(base.apply, multiply=count), plain, batch)
    kept = kept_bytes(lambda p: loss_of(model, batch)(p)[0], variables.params)
    assert kept <= kept_bytes(lambda p: loss_of(base, batch)(p)[0], plain.params) + sum(elements.values())


# Where it runs.


def device(capability):
    """What JAX knows of a GPU."""
    return types.SimpleNamespace(device_kind=f"GPU {capability}", compute_capability=capability)


@pytest.mark.parametrize("capability", ["8.9", "9.0", "10.0"])
def test_gpus_with_8_bit_units_are_let_through(capability, monkeypatch, batch):
    monkeypatch.setattr(jax, "local_devices", lambda: [device(capability)])
    native = qat(from_linen(DenseNet()), "e4m3fn", gradients="e5m2", compute="native")
    emulated = qat(from_linen(DenseNet()), "e4m3fn", gradients="e5m2", compute="emulated")
    params = jax.eval_shape(emulated.init, jax.random.key(0), batch).params
    texts = [jax.jit(loss_of(model, batch)).lower(params).as_text() for model in (native, emulated)]
    assert texts[0] == texts[1]  # one program


@pytest.mark.parametrize("found", [None, "8.0"], ids=["this CPU", "Ampere"])
def test_native_on_a_device_without_8_bit_units_says_what_is_missing_and_what_to_use(found, monkeypatch):
    if found is not None:
        monkeypatch.setattr(jax, "local_devices", lambda: [device(found)])
    name = "cpu" if found is None else "GPU 8.0"
    with pytest.raises(UserError, match=rf"8-bit matrix units .*8\.9.* but this is {name}.*'simulated'.*'emulated'"):
        qat(from_linen(DenseNet()), "e4m3fn", compute="native")


@pytest.mark.parametrize(
    ("found", "settings", "same_as"),
    [
        (device("8.9"), {}, "emulated"),
        (device("9.0"), {"gradients": None}, "emulated"),
        (types.SimpleNamespace(device_kind="TPU7x"), {}, "emulated"),
        (device("8.6"), {}, "simulated"),
        (device("gfx942"), {}, "simulated"),
        (types.SimpleNamespace(device_kind="TPU v5 lite"), {}, "simulated"),
        (None, {}, "simulated"),
        (device("9.0"), {"format": "e4m3fnuz"}, "simulated"),
        (device("9.0"), {"gradients": "e4m3fn"}, "simulated"),
        (device("9.0"), {"activations": False}, "simulated"),
    ],
    ids=lambda value: getattr(value, "device_kind", None),
)
def test_by_default_8_bit_operands_are_multiplied_where_the_device_has_units_that_take_them(
    found, settings, same_as, monkeypatch, batch
):
    automatic, other = (qat(from_linen(DenseNet()), **settings, **more) for more in ({}, {"compute": same_as}))
    params = jax.eval_shape(other.init, jax.random.key(0), batch).params
    if found is not None:
        monkeypatch.setattr(jax, "local_devices", lambda: [found])  # after the model was made: it is asked when traced
    texts = [jax.jit(jax.grad(loss_of(m, batch), has_aux=True)).lower(params).as_text() for m in (automatic, other)]
    assert texts[0] == texts[1]


def test_the_client_step_of_the_default_job_holds_8_bit_arrays():
    """Inputs and kernels as float8_e4m3fn and the gradients of products as float8_e5m2, of every layer, in what is
    handed to XLA; each is made once by bits on CPU and decoded for the product."""
    experiment = build(base_config())
    rows = {name: column[:10] for name, column in experiment.dataset.train.items()} | {"mask": np.ones(10, np.float32)}
    variables = jax.eval_shape(experiment.simulation.model.init, jax.random.key(0), rows)
    text = jax.jit(jax.grad(loss_of(experiment.simulation.model, rows), has_aux=True)).lower(variables.params).as_text()
    made = lambda shape, kind: re.findall(rf"bitcast_convert .*\(tensor<{shape}xui8>\) -> tensor<{shape}x{kind}>", text)
    read = lambda shape, kind: re.findall(rf"bitcast_convert .*\(tensor<{shape}x{kind}>\) -> tensor<{shape}xui8>", text)
    for shape in ("10x64", "64x128", "10x128", "128x10"):  # inputs and kernels
        assert made(shape, "f8E4M3FN") and read(shape, "f8E4M3FN")
    for shape in ("10x128", "10x10"):  # outputs
        assert len(made(shape, "f8E5M2")) == len(read(shape, "f8E5M2")) == 1
    assert "f8E4M3FNUZ" not in text


@pytest.mark.parametrize("compute", ["native", "emulated"])
@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"format": "e4m3fnuz"}, "format='e4m3fnuz'"),
        ({"format": "e5m2"}, "format='e5m2'"),
        ({"format": "e4m3fn", "gradients": "e4m3fn"}, "gradients='e4m3fn'"),
        ({"format": "e4m3fn", "weights": False}, "weights=False"),
        ({"format": "e4m3fn", "activations": False}, "activations=False"),
    ],
)
def test_what_8_bit_units_do_not_multiply_is_refused(compute, settings, named):
    with pytest.raises(UserError, match=f"needs weights and activations in e4m3fn and gradients in e5m2.*{named}"):
        qat(from_linen(DenseNet()), compute=compute, **settings)


def test_an_unknown_way_to_compute_is_named_with_the_known_ones():
    with pytest.raises(UserError, match="auto, simulated, native, emulated; got 'fast'"):
        qat(from_linen(DenseNet()), compute="fast")
