"""The product of a layer: its two gradients, its 8-bit operands, and which layer of a module it belongs to."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax import lax

from fedjax8.models import conv, from_linen, from_nnx
from fedjax8.models.products import conv_product, dot_product
from fedjax8.types import Variables

pytestmark = pytest.mark.usefixtures("compiled_quickly")
FORWARD, BACKWARD = jnp.float8_e4m3fn, jnp.float8_e5m2

DOTS = {
    "dense": ((3, 5), (5, 4), (((1,), (0,)), ((), ()))),
    "dense on sequences": ((2, 3, 5), (5, 4), (((2,), (0,)), ((), ()))),
    "two contracted axes": ((2, 3, 4), (3, 4, 5), (((1, 2), (0, 1)), ((), ()))),
    "contracted in another order": ((4, 2, 5), (5, 6, 4), (((0, 2), (2, 0)), ((), ()))),
    "three contracted in a circle": ((2, 3, 4, 5), (4, 5, 3, 6), (((1, 2, 3), (2, 0, 1)), ((), ()))),
    "batched": ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,)))),
    "batched in the middle": ((3, 2, 4, 6), (4, 6, 2, 5), (((2,), (0,)), ((3, 1), (1, 2)))),
}

PLAIN = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
ONE_DIMENSION = {"window_strides": (2,), "padding": [(2, 0)], "dimension_numbers": ("NHC", "HIO", "NHC")}
CONVS = {
    "same": ((2, 5, 4, 3), (3, 3, 3, 4), PLAIN),
    "strided": ((2, 7, 6, 3), (3, 2, 3, 4), PLAIN | {"window_strides": (2, 3)}),
    "padded": ((2, 5, 4, 3), (3, 3, 3, 4), PLAIN | {"padding": [(2, 0), (1, 3)], "window_strides": (2, 1)}),
    "dilated": ((2, 7, 6, 2), (3, 2, 2, 3), PLAIN | {"padding": "VALID", "rhs_dilation": (2, 3)}),
    "one dimension": ((2, 9, 3), (4, 3, 5), ONE_DIMENSION),
}
WIDENED = {
    "grouped": ((2, 5, 4, 4), (3, 3, 2, 6), PLAIN | {"feature_group_count": 2}),
    "depthwise": ((2, 5, 4, 4), (3, 3, 1, 8), PLAIN | {"feature_group_count": 4, "window_strides": (2, 1)}),
    "dilated image": ((2, 4, 4, 2), (3, 3, 2, 3), PLAIN | {"padding": [(1, 1), (0, 2)], "lhs_dilation": (2, 1)}),
    "channels first": ((2, 3, 5, 4), (4, 3, 3, 3), {"window_strides": (1, 2), "padding": "SAME"}),
    "three dimensions": (
        (1, 3, 4, 4, 2),
        (2, 3, 2, 2, 3),
        {"window_strides": (1, 1, 2), "padding": "SAME", "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")},
    ),
}


def integers(rng, shape):
    """Float32 integers that e4m3fn and e5m2 hold exactly, and whose sums of products float32 holds exactly."""
    return jnp.asarray(rng.integers(-7, 8, shape), jnp.float32)


def three(product, x, kernel, dy):
    """y, dx and dkernel."""
    return product.forward(x, kernel), product.input_gradient(dy, kernel), product.kernel_gradient(x, dy)


def three_by_jax(multiply, x, kernel, dy):
    """The same, by differentiation."""
    y, pull = jax.vjp(multiply, x, kernel)
    return (y, *pull(dy))


def in_8_bits(x, kernel, dy):
    return x.astype(FORWARD), kernel.astype(FORWARD), dy.astype(BACKWARD)


def assert_all_equal(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


def products_in(f, *args):
    """`[(left, right, result), ...]`: element types of the matrix products of the lowered program, in its order."""
    text = jax.jit(f).lower(*args).as_text()
    signature = r"stablehlo\.dot_general.*: \(tensor<([^>]*)>, tensor<([^>]*)>\) -> tensor<([^>]*)>"
    return [tuple(shape.split("x")[-1] for shape in match) for match in re.findall(signature, text)]


@pytest.fixture(params=DOTS)
def dot(request, rng):
    """A product, what it should compute, and integers to compute it on."""
    x_shape, kernel_shape, dimension_numbers = DOTS[request.param]
    multiply = functools.partial(lax.dot_general, dimension_numbers=dimension_numbers)
    x, kernel = integers(rng, x_shape), integers(rng, kernel_shape)
    dy = integers(rng, jax.eval_shape(multiply, x, kernel).shape)
    return dot_product(x.ndim, kernel.ndim, dimension_numbers), multiply, (x, kernel, dy)


def convolution(case, rng, multiply=lax.conv_general_dilated):
    x_shape, kernel_shape, settings = (CONVS | WIDENED)[case]
    x, kernel = integers(rng, x_shape), integers(rng, kernel_shape)
    plain = functools.partial(lax.conv_general_dilated, **settings)
    dy = integers(rng, jax.eval_shape(plain, x, kernel).shape)
    return conv_product(multiply, x, kernel, **settings), plain, (x, kernel, dy)


def test_the_gradients_of_a_matrix_product_are_those_of_lax(dot):
    product, multiply, args = dot
    got = jax.jit(functools.partial(three, product))(*args)
    assert_all_equal(got, jax.jit(functools.partial(three_by_jax, multiply))(*args))


def test_8_bit_operands_of_a_matrix_product_give_the_float32_result(dot):
    product, _, args = dot
    f = jax.jit(functools.partial(three, product))
    assert_all_equal(f(*in_8_bits(*args)), f(*args))


def test_a_matrix_product_gets_its_8_bit_operands_as_they_are(dot):
    product, _, args = dot
    forward, *gradients = products_in(functools.partial(three, product), *in_8_bits(*args))
    assert forward == ("f8E4M3FN", "f8E4M3FN", "f32")
    assert gradients == [("f8E5M2", "f8E4M3FN", "f32")] * 2


@pytest.mark.parametrize("multiply", [lax.conv_general_dilated, conv.conv_general_dilated], ids=["lax", "fedjax8"])
@pytest.mark.parametrize("case", [*CONVS, *WIDENED])
def test_the_gradients_of_a_convolution_are_those_of_lax_in_float32_and_in_8_bits(case, multiply, rng):
    product, plain, args = convolution(case, rng, multiply)

    @jax.jit
    def all_ways(*args):
        return three(product, *args), three(product, *in_8_bits(*args)), three_by_jax(plain, *args)

    in_float32, narrow, want = all_ways(*args)
    assert_all_equal(in_float32, want)
    assert_all_equal(narrow, want)


@pytest.mark.parametrize("case", CONVS)
def test_a_convolution_of_8_bit_operands_is_three_matrix_products_of_them(case, rng):
    product, _, args = convolution(case, rng)
    f, narrow = functools.partial(three, product), in_8_bits(*args)
    forward, *gradients = products_in(f, *narrow)
    assert forward == ("f8E4M3FN", "f8E4M3FN", "f32")
    assert [sorted(types) for types in gradients] == [sorted(("f8E5M2", "f8E4M3FN", "f32"))] * 2
    assert "stablehlo.convolution" not in jax.jit(f).lower(*narrow).as_text()


@pytest.mark.parametrize("case", WIDENED)
def test_where_there_is_no_matrix_product_8_bit_operands_are_widened(case, rng):
    product, _, args = convolution(case, rng)
    f, narrow = functools.partial(three, product), in_8_bits(*args)
    text = jax.jit(f).lower(*narrow).as_text()
    convolutions = re.findall(r"stablehlo\.convolution.*: \(([^)]*)\) -> (.*)", text)
    assert len(convolutions) == 3
    assert "f8" not in str(convolutions)


@pytest.mark.parametrize("narrow", [False, True], ids=["float32", "8-bit"])
@pytest.mark.parametrize("case", ["dense", "strided", "depthwise"])
def test_per_client_kernels_under_vmap_give_what_each_client_gets(case, narrow, rng):
    if case == "dense":
        product = dot_product(2, 2, DOTS[case][2])
        shapes = (3, 5), (5, 4), (3, 4)
    else:
        product, _, args = convolution(case, rng, conv.conv_general_dilated)
        shapes = [v.shape for v in args]
    clients = [integers(rng, (3, *shape)) for shape in shapes]
    clients = in_8_bits(*clients) if narrow else clients
    f = functools.partial(three, product)
    got, want = jax.jit(lambda *c: (jax.vmap(f)(*c), lax.map(lambda args: f(*args), c)))(*clients)
    assert_all_equal(got, want)


class Own:
    """A product of the user's own: twice that of lax. Counts its calls."""

    def __init__(self, plain):
        self.plain, self.calls = plain, 0

    def __call__(self, *args, **settings):
        self.calls += 1
        return 2.0 * self.plain(*args, **settings)


def gradients_of(model, variables, batch, multiply):
    def total(params):
        return jnp.sum(jnp.sin(model.apply(Variables(params, variables.state), batch, multiply=multiply)[0]))

    return jax.grad(total)(variables.params)


def differentiated(path, product, x, kernel):
    """A `Multiply` that uses all three functions of a product."""
    run = jax.custom_vjp(product.forward)
    run.defvjp(
        lambda x, k: (product.forward(x, k), (x, k)),
        lambda saved, dy: (product.input_gradient(dy, saved[1]), product.kernel_gradient(saved[0], dy)),
    )
    return run(x, kernel)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize("layer", ["dense", "conv"])
def test_a_layer_keeps_a_product_of_its_own(kind, layer, rng):
    if layer == "dense":
        own, x = Own(lax.dot_general), jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
        linen, by_nnx = nn.Dense(4, dot_general=own), functools.partial(nnx.Linear, 3, 4, dot_general=own)
    else:
        own, x = Own(lax.conv_general_dilated), jnp.asarray(rng.normal(size=(2, 4, 4, 3)), jnp.float32)
        linen = nn.Conv(4, (3, 3), conv_general_dilated=own)
        by_nnx = functools.partial(nnx.Conv, 3, 4, (3, 3), conv_general_dilated=own)
    model = from_linen(linen) if kind == "linen" else from_nnx(lambda rngs: by_nnx(rngs=rngs))
    variables = model.init(jax.random.key(0), {"x": x})
    calls = own.calls
    got = gradients_of(model, variables, {"x": x}, differentiated)
    assert own.calls > calls
    want = gradients_of(model, variables, {"x": x}, None)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # sums of at most 32 terms, in another order


class Block(nn.Module):
    """Two dense layers, the second in a list."""

    def setup(self):
        self.first = nn.Dense(3)
        self.rest = [nn.Dense(3)]

    def __call__(self, x):
        return self.rest[0](nn.relu(self.first(x)))


class Nested(nn.Module):
    """Transposed convolution, attention, two blocks, the first of them called twice, and a layer that sums two axes."""

    @nn.compact
    def __call__(self, x):
        x = nn.ConvTranspose(3, (2,), name="grown")(x)
        x = nn.MultiHeadDotProductAttention(1, name="attention")(x)
        block = Block(name="twice")
        return nn.DenseGeneral((2, 2), axis=(-2, -1), name="wide")(Block(name="once")(block(block(x))))


class BlockNNX(nnx.Module):
    """The same with nnx."""

    def __init__(self, rngs):
        self.first = nnx.Linear(3, 3, rngs=rngs)
        self.rest = nnx.List([nnx.Linear(3, 3, rngs=rngs)])

    def __call__(self, x):
        return self.rest[0](nnx.relu(self.first(x)))


class NestedNNX(nnx.Module):
    """The same with nnx."""

    def __init__(self, rngs):
        self.grown = nnx.ConvTranspose(3, 3, (2,), rngs=rngs)
        self.attention = nnx.MultiHeadAttention(1, 3, decode=False, rngs=rngs)
        self.twice, self.once = BlockNNX(rngs), BlockNNX(rngs)
        self.wide = nnx.LinearGeneral((4, 3), (2, 2), axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        x = self.attention(self.grown(x))
        return self.wide(self.once(self.twice(self.twice(x))))


@pytest.mark.parametrize(
    ("make", "rest"),
    [(lambda: from_linen(Nested()), "rest_0"), (lambda: from_nnx(NestedNNX), "rest/0")],
    ids=["linen", "nnx"],
)
def test_a_product_comes_with_the_path_of_its_layer_once_per_call(make, rest, rng):
    """Transposed convolutions, whose product flax does not hand out, are left alone."""
    model, batch = make(), {"x": jnp.asarray(rng.normal(size=(2, 4, 3)), jnp.float32)}
    variables = jax.jit(model.init)(jax.random.key(0), batch)
    paths = []

    def look_up(path, product, x, kernel):
        node = variables.params
        for part in path.split("/"):
            node = node[part if part in node else int(part)]
        np.testing.assert_array_equal(kernel.ravel(), node["kernel"].ravel())
        paths.append(path)
        return product.forward(x, kernel)

    outputs, _ = model.apply(variables, batch, multiply=look_up)
    assert sorted(paths[:3]) == ["attention/key", "attention/query", "attention/value"]
    twice = ["twice/first", f"twice/{rest}"]
    assert paths[3:] == ["attention/out", *twice, *twice, "once/first", f"once/{rest}", "wide"]
    np.testing.assert_array_equal(outputs, model.apply(variables, batch)[0])
