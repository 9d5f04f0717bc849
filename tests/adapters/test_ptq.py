"""Post-training quantization: trained in float32, evaluated on the grid."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import linen as nn

from fedjax8.adapters.ptq import ptq
from fedjax8.models.linen import from_linen
from fedjax8.types import Variables


class Small(nn.Module):
    """One convolution, one dense layer."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), name="conv")(x))
        return nn.Dense(4, name="dense")(x.reshape(x.shape[0], -1))


@pytest.fixture
def batch(rng):
    x = jnp.asarray(rng.standard_normal((6, 5, 5, 2)), jnp.float32)
    return {"x": x, "y": jnp.asarray([0, 1, 2, 3, 0, 1]), "mask": jnp.ones(6)}


def on_grid(x, dtype=ml_dtypes.float8_e4m3fn):
    """NumPy reference: nearest value of the grid whose largest value is max |x|."""
    x = np.asarray(x, np.float64)
    unit = np.abs(x).max() / float(ml_dtypes.finfo(dtype).max)
    return (x / unit).astype(np.float32).astype(dtype).astype(np.float64) * unit


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_it_has_the_parameters_of_the_model_and_its_gradients_exactly(batch):
    base, model = from_linen(Small()), ptq(from_linen(Small()))
    variables = base.init(jax.random.key(0), batch)
    same(model.init(jax.random.key(0), batch), variables)

    def gradients(model):
        def loss(params):
            outputs, _ = model.apply(Variables(params, {}), batch, train=True)
            return jnp.mean(model.loss(outputs, batch))

        return jax.grad(loss)(variables.params)

    same(gradients(model), gradients(base))
    assert all(np.any(np.asarray(g) != 0) for g in jax.tree.leaves(gradients(model)))


@pytest.mark.parametrize("name", ["e4m3fnuz", "e4m3fn", "e5m2"])
def test_a_dense_layer_is_evaluated_on_the_grids_of_its_input_and_kernel(rng, name):
    """Against NumPy; the outputs differ by float32 sums of 12 products alone, unless a value is within a rounding of
    a tie, which none of these is."""
    model = ptq(from_linen(nn.Dense(3)), name)
    batch = {"x": jnp.asarray(rng.standard_normal((5, 12)), jnp.float32)}
    variables = model.init(jax.random.key(1), batch)
    variables.params["bias"] = jnp.asarray([0.1, -0.2, 0.3])
    kernel, dtype = variables.params["kernel"], getattr(ml_dtypes, f"float8_{name}")
    expected = on_grid(batch["x"], dtype) @ on_grid(kernel, dtype) + np.float32([0.1, -0.2, 0.3])
    outputs, state = model.apply(variables, batch)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)
    exact = np.float64(batch["x"]) @ np.float64(kernel) + np.float32([0.1, -0.2, 0.3])
    assert np.abs(expected - exact).max() > 1e-2  # the grid shows
    assert state == variables.state


def test_convolutions_are_evaluated_on_the_grid_too(batch):
    """The plain convolution fed with quantized input and kernel gives what the layer gives."""
    base = from_linen(nn.Conv(3, (3, 3)))
    variables = base.init(jax.random.key(2), batch)
    rounded = variables.params | {"kernel": jnp.asarray(on_grid(variables.params["kernel"]), jnp.float32)}
    seen = batch | {"x": jnp.asarray(on_grid(batch["x"]), jnp.float32)}
    expected, _ = base.apply(Variables(rounded, {}), seen)
    got, _ = ptq(base).apply(variables, batch)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got - base.apply(variables, batch)[0]).max() > 1e-2


def test_the_float32_view_is_the_model_itself(batch):
    base, model = from_linen(Small()), ptq(from_linen(Small()))
    variables = model.init(jax.random.key(0), batch)
    same(model.views["float32"](variables, batch), base.apply(variables, batch))
    assert np.any(np.asarray(model.apply(variables, batch)[0] != base.apply(variables, batch)[0]))


def test_whoever_asks_for_the_products_gets_them(batch):
    """Float32 products while training; while evaluating those of quantized operands, under the layers' paths."""
    base, model = from_linen(Small()), ptq(from_linen(Small()))
    variables = model.init(jax.random.key(0), batch)
    for train, plain in ((True, base), (False, model)):
        paths = []

        def multiply(path, product, x, kernel, paths=paths):
            paths.append(path)
            return product.forward(x, kernel)

        same(model.apply(variables, batch, train=train, multiply=multiply)[0], plain.apply(variables, batch)[0])
        assert paths == ["conv", "dense"]
