"""A kernel larger than a cache is read by blocks in quantization-aware training: what comes out, and what it takes."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8.adapters._products import quantized_product
from fedjax8.models import dense, products
from fedjax8.numerics.formats import get_format

pytestmark = pytest.mark.skipif(jax.default_backend() != "cpu", reason="only on CPU kernels are read by blocks")
INPUTS, OUTPUTS = 8192, 64
FORMAT = get_format("e4m3fnuz")
DENSE = (((1,), (0,)), ((), ()))


@pytest.fixture(scope="module")
def layer():
    """The product of a layer, and its (x, kernel, beta, alpha, weights of y). Both clips clip something."""
    rng = np.random.default_rng(3)
    x, kernel, weights = (
        jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((4, INPUTS), (INPUTS, OUTPUTS), (4, OUTPUTS))
    )
    assert kernel.nbytes == dense.LARGE_BYTES
    handed = []
    multiply = lambda path, product, x, kernel: handed.append(product) or product.forward(x, kernel)
    products.dot_stand_in(multiply, "layer", None)(x, kernel, DENSE)
    assert handed[0].blocks > 1
    return handed[0], (x, kernel, jnp.float32(2.0), jnp.float32(2.5), weights)


def value_and_gradients(product, x, kernel, beta, alpha, weights, back=None, first=False):
    """y, and the gradients for what is not None, in a first layer without that for x, of a sum of y.

    With a format for the gradient of y the sum is linear: else that gradient could be rounded to another neighbor.
    """

    def total(numbers):
        clips = {name: numbers.get(name) for name in ("beta", "alpha")}
        values = numbers.get("x", x), numbers["kernel"]
        y = quantized_product(product, *values, **clips, fmt=FORMAT, back=back, eight_bit=False)
        return jnp.sum(weights * y + (0.5 * jnp.sin(y) if back is None else 0.0)), y

    numbers = {"x": x, "kernel": kernel, "beta": beta, "alpha": alpha}
    numbers = {name: value for name, value in numbers.items() if value is not None and not (first and name == "x")}
    gradients, y = jax.jit(jax.grad(total, has_aux=True))(numbers)
    return y, gradients


def reference(x, kernel, beta, alpha, weights):
    """The same in float64 by the formulas of `straight_through`, on numbers that ml_dtypes rounded."""

    def rounded(v, clip):
        v = np.asarray(v, np.float32)
        scaled = np.clip(v, -clip, clip) * np.float32(240.0 / clip)
        return scaled.astype(ml_dtypes.float8_e4m3fnuz).astype(np.float64) * (float(clip) / 240.0)

    def back(v, clip, gradient):
        v, on_grid, inside = np.asarray(v, np.float64), rounded(v, clip), np.abs(v) <= clip
        slope = np.where(inside, (on_grid - v) / clip, np.sign(v))
        return np.where(inside, gradient, 0.0), np.sum(slope * gradient)

    a, b = rounded(x, beta), rounded(kernel, alpha)
    y = a @ b
    dy = np.asarray(weights, np.float64) + 0.5 * np.cos(y)
    dx, dbeta = back(x, beta, dy @ b.T)
    dkernel, dalpha = back(kernel, alpha, a.T @ dy)
    return y, {"x": dx, "kernel": dkernel, "beta": dbeta, "alpha": dalpha}


def assert_close(got, expected, to):
    """Within a share of the largest magnitude."""
    np.testing.assert_allclose(got, expected, rtol=0, atol=to * np.max(np.abs(expected)))


@pytest.mark.parametrize("first", [False, True])
def test_values_and_gradients_equal_numpy(layer, first):
    product, numbers = layer
    y, gradients = value_and_gradients(product, *numbers, first=first)
    expected_y, expected = reference(*numbers)
    assert_close(y, expected_y, 1e-5)
    assert set(gradients) == set(expected) - ({"x"} if first else set())
    for name, gradient in gradients.items():
        # Sums of up to half a million terms in float32, of either sign: to a share of 1e-4.
        assert_close(gradient, expected[name], 1e-4)


@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("back", [None, get_format("e5m2")])
@pytest.mark.parametrize("first", [False, True])
def test_by_blocks_and_as_a_whole_are_the_same_sums(layer, beta, back, first):
    product, (x, kernel, clip, alpha, weights) = layer
    run = functools.partial(value_and_gradients, back=back, first=first)
    by_blocks, whole = (
        run(p, x, kernel, clip if beta else None, alpha, weights) for p in (product, product._replace(blocks=1))
    )
    jax.tree.map(lambda a, b: assert_close(a, b, 1e-4), by_blocks, whole)


def test_clients_with_their_own_kernels_are_mapped(layer):
    product, (x, kernel, beta, alpha, weights) = layer
    kernels = jnp.stack([kernel, -0.5 * kernel])
    run = lambda kernel: value_and_gradients(product, x, kernel, beta, alpha, weights)
    mapped = jax.vmap(run)(kernels)
    for i, alone in enumerate(map(run, kernels)):
        jax.tree.map(lambda a, b: assert_close(a[i], b, 1e-5), mapped, alone)


def test_devices_of_a_mesh_get_what_each_gets_alone(layer):
    product, numbers = layer
    both = [jnp.stack([v, 0.5 * v]) for v in numbers]
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.sharding.PartitionSpec("d")
    one = lambda numbers: jax.tree.map(lambda v: v[None], value_and_gradients(product, *(v[0] for v in numbers)))
    got = jax.jit(jax.shard_map(one, mesh=mesh, in_specs=shard, out_specs=shard))(both)
    for i in range(2):
        alone = value_and_gradients(product, *(v[i] for v in both))
        jax.tree.map(lambda a, b, i=i: assert_close(a[i], b, 1e-5), got, alone)


def test_an_empty_batch_gives_zeros(layer):
    _, (x, kernel, beta, alpha, weights) = layer
    handed = []
    multiply = lambda path, product, x, kernel: handed.append(product) or product.forward(x, kernel)
    products.dot_stand_in(multiply, "layer", dense.dot_general)(x[:0], kernel, DENSE)
    y, gradients = value_and_gradients(handed[0], x[:0], kernel, beta, alpha, weights[:0])
    assert y.shape == (0, OUTPUTS)
    assert not any(np.any(gradient) for gradient in gradients.values())


def test_types_are_those_of_the_whole_product(layer):
    product, numbers = layer
    with jax.enable_x64(True):
        by_blocks, whole = (value_and_gradients(p, *numbers) for p in (product, product._replace(blocks=1)))
    assert jax.tree.map(lambda a: a.dtype, by_blocks) == jax.tree.map(lambda a: a.dtype, whole)


def compiled_step(layer, blocks=None):
    """Of a first layer: the kernel it is given becomes the new one."""
    product, (x, kernel, beta, alpha, weights) = layer
    product = product if blocks is None else product._replace(blocks=blocks)

    def step(kernel, x):
        _, gradients = value_and_gradients(product, x, kernel, beta, alpha, weights, first=True)
        return kernel - 0.1 * gradients["kernel"]

    return jax.jit(step, donate_argnums=0).lower(kernel, x).compile()


def test_a_step_writes_nothing_of_the_kernels_size_but_the_kernel(layer):
    by_blocks, whole = (compiled_step(layer, blocks).memory_analysis().temp_size_in_bytes for blocks in (None, 1))
    assert by_blocks < 4 * INPUTS * OUTPUTS < whole


def test_inputs_are_not_rounded_again_for_every_element_of_the_kernel(layer):
    loops = compiled_step(layer).as_text().split("\n\n")
    rounds = [f"s32[4,{INPUTS}]" in loop for loop in loops]  # rounding works on the bits
    assert any(rounds)
    assert not any(f"f32[{INPUTS},{OUTPUTS}]" in loop for loop, does in zip(loops, rounds, strict=True) if does)


@pytest.mark.parametrize(("inputs", "outputs"), [(8192, 64), (12544, 128), (25088, 4096), (3072, 768)])
def test_blocks_are_equal_and_fit(inputs, outputs):
    product = products.dot_product(2, 2, DENSE)
    blocks = dense.for_large_kernel(product, jnp.zeros((inputs, outputs))).blocks
    assert blocks > 1 and inputs % blocks == 0
    assert dense.BLOCK_BYTES / 4 < 4 * inputs * outputs / blocks <= dense.BLOCK_BYTES


def test_a_kernel_that_cannot_be_cut_is_taken_whole():
    product = products.dot_product(2, 2, DENSE)
    assert product.blocks == 1
    assert dense.for_large_kernel(product, jnp.zeros((8191, 65))) == product


def test_other_layers_have_one_block(rng):
    handed = []
    multiply = lambda path, product, x, kernel: handed.append(product) or product.forward(x, kernel)
    dot = products.dot_stand_in(multiply, "layer", None)
    large = jnp.zeros((INPUTS, OUTPUTS))
    dot(jnp.zeros((4, INPUTS - 1)), large[1:], DENSE)
    dot(jnp.zeros((dense.SMALL_BATCH + 1, INPUTS)), large, DENSE)
    dot(jnp.zeros((4, OUTPUTS)), large, (((1,), (1,)), ((), ())))
    dot(jnp.zeros((1, 4, INPUTS)), large, (((2,), (0,)), ((), ())))
    assert [product.blocks for product in handed] == [1, 1, 1, 1]


def test_8_bit_operands_have_the_gradient_of_before(rng):
    plain = products.dot_product(2, 2, DENSE)
    large = dense.for_large_kernel(plain, jnp.zeros((INPUTS, OUTPUTS)))
    x, dy = jnp.asarray(rng.standard_normal((4, 32)), jnp.float8_e4m3fn), jnp.ones((4, 8), jnp.float8_e5m2)
    got = large.kernel_gradient(x, dy)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, plain.kernel_gradient(x, dy))
