"""Quantization-aware training: where clips stand, what the forward pass sees, what it learns."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from fedjax8 import trees
from fedjax8.adapters.inputs import inputs
from fedjax8.adapters.qat import qat
from fedjax8.errors import UserError
from fedjax8.models.linen import from_linen
from fedjax8.models.nnx import from_nnx
from fedjax8.types import Variables


class Small(nn.Module):
    """One convolution, one dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="conv")(x))
        return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


class SmallNNX(nnx.Module):
    """The same with nnx."""

    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), rngs=rngs)
        self.dense = nnx.Linear(5 * 5 * 3, 4, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        return self.dense(x.reshape(x.shape[0], -1))


@pytest.fixture
def batch(rng):
    x = jnp.asarray(rng.standard_normal((6, 5, 5, 2)), jnp.float32)
    return {"x": x, "y": jnp.asarray([0, 1, 2, 3, 0, 1]), "mask": jnp.ones(6)}


def on_grid(x, alpha, format="e4m3fn"):
    """NumPy reference: nearest value of the grid stretched to alpha."""
    dtype = getattr(ml_dtypes, f"float8_{format}")
    largest = float(ml_dtypes.finfo(dtype).max)
    scaled = np.clip(np.asarray(x, np.float64), -alpha, alpha) * (largest / alpha)
    return scaled.astype(np.float32).astype(dtype).astype(np.float64) * (alpha / largest)


def same_patches(x, size):
    """`[B, H, W, size * size * C]`: the windows of a convolution with stride 1 and zeros around the image."""
    edge = size // 2
    padded = np.pad(x, [(0, 0), (edge, edge), (edge, edge), (0, 0)])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    return windows.transpose(0, 1, 2, 4, 5, 3).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("make", [lambda: from_linen(Small()), lambda: from_nnx(SmallNNX)], ids=["linen", "nnx"])
def test_each_layer_gets_a_clip_for_its_kernel_and_one_for_its_input(make, batch):
    base, model = make(), qat(make())
    plain, variables = base.init(jax.random.key(0), batch), model.init(jax.random.key(0), batch)
    for layer in ("conv", "dense"):
        node = variables.params[layer]
        assert set(node) == {"kernel", "bias", "kernel_clip", "input_clip"}
        np.testing.assert_array_equal(node["kernel"], plain.params[layer]["kernel"])
        assert float(node["kernel_clip"]) == float(jnp.max(jnp.abs(node["kernel"])))
    assert float(variables.params["conv"]["input_clip"]) == float(jnp.max(jnp.abs(batch["x"])))


@pytest.mark.parametrize(
    ("make", "format"),
    [(lambda: from_linen(Small()), None), (lambda: from_nnx(SmallNNX), "e4m3fnuz")],
    ids=["linen", "nnx, e4m3fnuz"],
)
def test_the_forward_pass_runs_on_the_grid(make, format, batch):
    """Layer by layer: what the quantized model itself put in and got out, against NumPy in float64."""
    model = qat(make(), format)
    variables = model.init(jax.random.key(1), batch)
    seen = {}

    def remember(path, product, x, kernel):
        y = product.forward(x, kernel)
        seen[path] = [np.asarray(v) for v in (x, kernel, y)]
        return y

    outputs, _ = model.apply(variables, batch, multiply=remember)
    assert list(seen) == ["conv", "dense"]
    for path, (x, kernel, y) in seen.items():
        node = variables.params[path]
        np.testing.assert_array_equal(kernel, node["kernel"])  # the layer's own numbers arrive unrounded
        grid = format or "e4m3fn"
        x, kernel = on_grid(x, float(node["input_clip"]), grid), on_grid(kernel, float(node["kernel_clip"]), grid)
        patches = x if path == "dense" else same_patches(x, 3)
        kernel = kernel.reshape(-1, kernel.shape[-1])
        # float32: every factor is off by three roundings of 2^-24, every partial sum by one more
        bound = (kernel.shape[0] + 6) * 2.0**-24 * (np.abs(patches) @ np.abs(kernel))
        assert np.all(np.abs(y - patches @ kernel) <= bound)
    np.testing.assert_allclose(outputs, seen["dense"][2] + variables.params["dense"]["bias"], rtol=2.0**-23)


def test_without_quantizers_it_is_the_model_itself(batch):
    base, model = from_linen(Small()), qat(from_linen(Small()), weights=False, activations=False)
    variables = model.init(jax.random.key(0), batch)
    np.testing.assert_array_equal(model.apply(variables, batch)[0], base.apply(variables, batch)[0])
    assert not any(trees.is_clip(name) for name in trees.named_leaves(variables.params))


def test_the_float32_view_ignores_the_clips(batch):
    base, model = from_linen(Small()), qat(from_linen(Small()))
    variables = model.init(jax.random.key(0), batch)
    plain = base.init(jax.random.key(0), batch)
    np.testing.assert_array_equal(model.views["float32"](variables, batch)[0], base.apply(plain, batch)[0])
    assert np.any(np.asarray(model.apply(variables, batch)[0] != base.apply(plain, batch)[0]))


def test_gradients_reach_weights_and_clips(batch):
    model = qat(from_linen(Small()))
    variables = model.init(jax.random.key(0), batch)
    tight = jax.tree.map(lambda x: x, variables.params)
    tight["dense"]["kernel_clip"] = 0.5 * tight["dense"]["kernel_clip"]

    def loss(params):
        outputs, _ = model.apply(Variables(params, {}), batch, train=True)
        return jnp.mean(model.loss(outputs, batch))

    gradients = jax.grad(loss)(tight)
    kernel, clip = np.asarray(tight["dense"]["kernel"]), float(tight["dense"]["kernel_clip"])
    outside = np.abs(kernel) > clip
    assert outside.any()
    np.testing.assert_array_equal(np.asarray(gradients["dense"]["kernel"])[outside], 0.0)
    assert np.mean(np.asarray(gradients["dense"]["kernel"])[~outside] != 0.0) > 0.8  # a dead ReLU passes nothing
    assert float(gradients["dense"]["kernel_clip"]) != 0.0
    assert float(gradients["conv"]["input_clip"]) != 0.0


@pytest.mark.parametrize("gradients", [None, "e5m2"])
def test_a_first_layers_input_clip_gets_the_gradient_that_it_has_with_the_inputs_own(batch, gradients):
    """Without the gradient of x the clip's comes from another product; both are <dx, dQ/dbeta>."""
    model = qat(from_linen(Small()), gradients=gradients)
    variables = model.init(jax.random.key(0), batch)
    smaller = {"input_clip": 0.7 * variables.params["conv"]["input_clip"]}  # so that some inputs are clipped
    params = variables.params | {"conv": variables.params["conv"] | smaller}

    def loss(params, x):
        logits = model.apply(variables._replace(params=params), batch | {"x": x})[0]
        return jnp.sum(jnp.sin(logits))

    alone = jax.grad(loss)(params, batch["x"])
    with_input, _ = jax.grad(loss, argnums=(0, 1))(params, batch["x"])
    assert abs(float(with_input["conv"]["input_clip"])) > 0.1
    np.testing.assert_allclose(alone["conv"]["input_clip"], with_input["conv"]["input_clip"], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, *(trees.named_leaves(g["dense"]) for g in (alone, with_input)))


def test_a_first_layers_input_gradient_is_not_computed(batch):
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3)(x.reshape(len(x), -1))

    model = qat(from_linen(Wide()))
    variables = model.init(jax.random.key(0), batch)

    def loss(params, x):
        return jnp.sum(jnp.square(model.apply(variables._replace(params=params), batch | {"x": x})[0]))

    def products_of_inputs_shape(argnums):
        text = jax.jit(jax.grad(loss, argnums)).lower(variables.params, batch["x"]).as_text()
        return sum("dot_general" in line and line.rstrip().endswith("tensor<6x50xf32>") for line in text.splitlines())

    assert products_of_inputs_shape((0, 1)) == 1
    assert products_of_inputs_shape(0) == 0
    alone = jax.grad(loss)(variables.params, batch["x"])
    with_input, _ = jax.grad(loss, argnums=(0, 1))(variables.params, batch["x"])
    clips = (gradients["Dense_0"]["input_clip"] for gradients in (alone, with_input))
    np.testing.assert_allclose(*clips, rtol=1e-5)


def test_rounding_gradients_to_e5m2_changes_only_the_backward_pass(batch):
    plain, rounded = qat(from_linen(Small()), gradients=None), qat(from_linen(Small()))
    variables = plain.init(jax.random.key(0), batch)
    np.testing.assert_array_equal(plain.apply(variables, batch)[0], rounded.apply(variables, batch)[0])

    def kernel_gradient(model):
        def loss(params):
            outputs, _ = model.apply(Variables(params, {}), batch, train=True)
            return jnp.mean(model.loss(outputs, batch))

        return np.asarray(jax.grad(loss)(variables.params)["conv"]["kernel"])

    exact, coarse = kernel_gradient(plain), kernel_gradient(rounded)
    assert np.any(exact != coarse)
    # e5m2 keeps two mantissa bits: each rounded number is off by at most 1/8, and errors average out
    np.testing.assert_allclose(coarse, exact, atol=np.abs(exact).max() / 8)


def test_the_gradient_of_a_product_is_rounded_to_e5m2_before_it_is_multiplied(rng):
    """Against NumPy and ml_dtypes: dkernel = Q(x)^T G(dy), with dy chosen, its largest magnitude on the top of e5m2."""
    model = qat(from_linen(nn.Dense(4)))
    x, dy = (rng.standard_normal(shape).astype(np.float32) for shape in ((6, 9), (6, 4)))
    variables = model.init(jax.random.key(0), {"x": jnp.asarray(x)})
    loss = lambda params: jnp.sum(dy * model.apply(variables._replace(params=params), {"x": x})[0])
    found = jax.grad(loss)(variables.params)
    on_x, on_dy = on_grid(x, np.abs(x).max()), on_grid(dy, np.abs(dy).max(), "e5m2")
    assert np.mean(on_dy != dy) > 0.9
    # float32: as many roundings as in the forward pass, of sums over six rows
    np.testing.assert_allclose(found["kernel"], on_x.T @ on_dy, atol=12 * 2.0**-24 * (abs(on_x.T) @ abs(on_dy)).max())
    np.testing.assert_allclose(found["bias"], dy.sum(0), rtol=1e-5)  # no product: not rounded


def test_clips_are_held_above_zero():
    model = qat(from_linen(Small()))
    params = {"dense": {"kernel": jnp.ones((2, 2)), "kernel_clip": jnp.float32(-3.0)}}
    projected = model.project(params)
    assert float(projected["dense"]["kernel_clip"]) == pytest.approx(1e-8)
    np.testing.assert_array_equal(projected["dense"]["kernel"], 1.0)


def test_a_quantized_model_learns(batch):
    model = inputs(qat(from_linen(Small())), 0.0, 1.0)
    variables = model.init(jax.random.key(0), batch)
    optimizer = optax.sgd(0.1)

    @jax.jit
    def step(params, state):
        def loss(params):
            outputs, _ = model.apply(Variables(params, {}), batch, train=True)
            return jnp.mean(model.loss(outputs, batch))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = optimizer.update(gradients, state)
        return model.project(optax.apply_updates(params, updates)), state, value

    params, state, losses = variables.params, optimizer.init(variables.params), []
    for _ in range(60):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < 0.3 * losses[0]


def test_an_unknown_format_is_named_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"e4m3fm.*e4m3fn"):
        qat(from_linen(Small()), "e4m3fm")


def test_a_row_that_is_not_finite_does_not_spoil_the_clips(batch):
    model = qat(from_linen(Small()))
    x = batch["x"].at[0, 0, 0, 0].set(jnp.nan).at[1, 2, 2, 1].set(jnp.inf)
    clips = {n: float(x) for n, x in trees.named_leaves(model.init(jax.random.key(0), batch | {"x": x}).params).items()
             if trees.is_clip(n)}  # fmt: skip
    assert len(clips) == 4 and all(np.isfinite(clip) and clip > 0 for clip in clips.values())
    assert clips["conv/input_clip"] == float(np.abs(x, where=np.isfinite(x), out=np.zeros(x.shape)).max())


class Grown(nn.Module):
    """A dense layer, then one whose product flax does not let one replace."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(2, name="dense")(x.reshape(x.shape[0], -1))
        return nn.ConvTranspose(3, (2,), name="grown")(x[:, :, None]).sum(1)


def test_a_layer_that_cannot_be_quantized_is_named_in_a_warning(batch):
    with pytest.warns(UserWarning, match="qat leaves grown/kernel in float32"):
        variables = qat(from_linen(Grown())).init(jax.random.key(0), batch)
    assert set(variables.params["grown"]) == {"kernel", "bias"} and "kernel_clip" in variables.params["dense"]


class Hidden(nn.Module):
    """A layer inside flax's remat, whose values cannot be seen from outside."""

    @nn.compact
    def __call__(self, x):
        return nn.remat(nn.Dense)(3)(x.reshape(x.shape[0], -1))


@pytest.mark.parametrize(
    ("module", "message"),
    [(nn.Sequential([lambda x: x.mean((1, 2))]), "no dense or convolution layer"), (Hidden(), r"nn\.scan, nn\.remat")],
    ids=["no layer", "remat"],
)
def test_a_model_that_cannot_be_quantized_is_refused(batch, module, message):
    base = from_linen(module)
    if not jax.tree.leaves(jax.eval_shape(lambda: module.init(jax.random.key(0), batch["x"]))):
        base = base._replace(init=lambda key, batch: Variables({}, {}))
    with pytest.raises(UserError, match=message):
        qat(base).init(jax.random.key(0), batch)


def test_a_layer_made_with_a_product_class_is_quantized_too(batch):
    class Own:
        def __call__(self, *args, **settings):
            return jax.lax.dot_general(*args, **settings)

    module = nn.Sequential([lambda x: x.reshape(x.shape[0], -1), nn.Dense(4, dot_general_cls=Own)])
    model = qat(from_linen(module))
    variables = model.init(jax.random.key(0), batch)
    (clips,) = [n for n in variables.params.values() if "kernel_clip" in n]
    outputs, _ = model.apply(variables, batch)
    x, node = np.asarray(batch["x"]).reshape(6, -1), jax.tree.map(np.asarray, clips)
    expected = on_grid(x, node["input_clip"]) @ on_grid(node["kernel"], node["kernel_clip"])
    np.testing.assert_allclose(outputs, expected, atol=2e-5)  # sums of 50 products of order one in float32


@pytest.mark.parametrize("narrow", [{"dtype": jnp.bfloat16}, {"preferred_element_type": jnp.bfloat16}])
def test_a_bfloat16_layer_stays_one_forward_and_backward(batch, narrow):
    def create(rngs):
        return nnx.Linear(50, 4, rngs=rngs, **narrow)

    base = from_nnx(create)
    flat = batch | {"x": batch["x"].reshape(6, -1)}
    model = qat(base)
    variables = model.init(jax.random.key(0), flat)
    plain, _ = base.apply(base.init(jax.random.key(0), flat), flat)
    outputs, _ = model.apply(variables, flat)
    assert outputs.dtype == plain.dtype
    gradient = jax.grad(lambda p: jnp.mean(model.apply(Variables(p, {}), flat)[0].astype(jnp.float32)))
    found = gradient(variables.params)
    assert all(jnp.isfinite(g).all() and g.dtype == jnp.float32 for g in jax.tree.leaves(found))
    assert float(jnp.abs(found["kernel"]).max()) > 0
