"""The convolution against NumPy and lax, on small integers: every sum is exact in float32, so results must be equal."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from fedjax8.models import conv
from fedjax8.models.conv import conv_general_dilated

pytestmark = pytest.mark.usefixtures("compiled_quickly")
IMAGE, LINE = ("NHWC", "HWIO", "NHWC"), ("NHC", "HIO", "NHC")
# images, kernel, strides, padding, kernel dilation, groups
CASES = {
    "one channel": ((2, 7, 6, 1), (3, 3, 1, 6), (1, 1), "SAME", (1, 1), 1),
    "three channels, narrow": ((2, 7, 7, 3), (3, 3, 3, 4), (1, 1), "VALID", (1, 1), 1),
    "three channels, wide": ((2, 6, 6, 3), (3, 3, 3, 32), (1, 1), "VALID", (1, 1), 1),
    "three channels, wide, strided": ((3, 9, 8, 3), (3, 3, 3, 20), (2, 1), "SAME", (1, 2), 1),
    "three channels, 5x5, wide": ((2, 8, 8, 3), (5, 5, 3, 20), (1, 1), "VALID", (1, 1), 1),
    "six channels, 5x5": ((3, 8, 8, 6), (5, 5, 6, 16), (1, 1), "VALID", (1, 1), 1),
    "32 channels": ((2, 5, 5, 32), (3, 3, 32, 8), (1, 1), "SAME", (1, 1), 1),
    "stride 2 leaves a rest": ((2, 8, 7, 6), (3, 2, 6, 4), (2, 2), "VALID", (1, 1), 1),
    "stride 2, same": ((2, 8, 8, 3), (3, 3, 3, 4), (2, 2), "SAME", (1, 1), 1),
    "uneven strides": ((2, 9, 8, 5), (2, 3, 5, 4), (3, 1), "SAME", (1, 1), 1),
    "one by one, stride 2": ((2, 5, 6, 32), (1, 1, 32, 8), (2, 2), "VALID", (1, 1), 1),
    "dilated kernel": ((2, 9, 9, 6), (3, 3, 6, 4), (1, 1), "SAME", (2, 3), 1),
    "dilated and strided": ((2, 11, 9, 6), (3, 2, 6, 4), (2, 1), "VALID", (2, 2), 1),
    "explicit padding": ((2, 6, 6, 6), (3, 3, 6, 4), (1, 1), ((2, 0), (1, 3)), (1, 1), 1),
    "negative padding": ((2, 8, 8, 6), (3, 3, 6, 4), (1, 1), ((-1, 0), (2, -2)), (1, 1), 1),
    "groups": ((2, 6, 6, 4), (3, 3, 2, 6), (1, 1), "SAME", (1, 1), 2),
    "depthwise": ((2, 6, 6, 3), (3, 3, 1, 6), (2, 1), "SAME", (1, 1), 3),
    "line": ((2, 9, 6), (3, 6, 4), (2,), "SAME", (1,), 1),
    "depthwise line, dilated": ((2, 11, 6), (5, 1, 6), (1,), "SAME", (2,), 6),
    "line of one channel": ((2, 9, 1), (3, 1, 4), (1,), "SAME", (2,), 1),
}


@pytest.fixture(params=["cpu", "gpu"])
def platform(request, monkeypatch):
    """Chooses the forms of a platform; all of them run anywhere."""
    monkeypatch.setattr(jax, "default_backend", lambda: request.param)
    return request.param


def both(case):
    """`(ours, lax's)` as functions of images and kernel, and the two shapes."""
    images, kernel, strides, padding, dilation, groups = case
    layout = IMAGE if len(images) == 4 else LINE
    settings = dict(
        window_strides=strides,
        padding=padding,
        rhs_dilation=dilation,
        dimension_numbers=layout,
        feature_group_count=groups,
    )
    functions = (functools.partial(f, **settings) for f in (conv_general_dilated, lax.conv_general_dilated))
    return *functions, images, kernel


def integers(rng, *shape):
    return rng.integers(-3, 4, shape).astype(np.float32)


def value_and_gradients(f):
    """y, dx and dk for a cotangent that depends on y, as it does in training: `2y`."""

    def run(x, kernel):
        y, pull = jax.vjp(f, x, kernel)
        return y, *pull(2 * y)

    return run


def by_numpy(case, x, kernel):
    """What `value_and_gradients` gives, by the definition: a sum over taps and groups."""
    _, (*taps, _, features), strides, padding, dilation, groups = case
    reach = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], reach, strides, padding)
    inside = tuple(slice(max(low, 0), max(low, 0) + n) for (low, _), n in zip(padding, x.shape[1:-1], strict=True))
    wide = np.pad(x, [(0, 0), *((max(low, 0), max(high, 0)) for low, high in padding), (0, 0)])
    cut = tuple(
        slice(max(-low, 0), n - max(-high, 0)) for (low, high), n in zip(padding, wide.shape[1:-1], strict=True)
    )
    padded = wide[:, *cut]
    size = [(n - r) // s + 1 for n, r, s in zip(padded.shape[1:-1], reach, strides, strict=True)]
    group = [(slice(i * x.shape[-1] // groups, (i + 1) * x.shape[-1] // groups),
              slice(i * features // groups, (i + 1) * features // groups)) for i in range(groups)]  # fmt: skip
    places = [
        (
            tap,
            tuple(
                slice(t * d, t * d + (n - 1) * s + 1, s)
                for t, d, n, s in zip(tap, dilation, size, strides, strict=True)
            ),
        )
        for tap in np.ndindex(*taps)
    ]
    y = np.zeros((len(x), *size, features))
    for tap, at in places:
        for i, o in group:
            y[..., o] += padded[:, *at, i] @ kernel[*tap][:, o]
    g, d_wide, dk = 2 * y, np.zeros(wide.shape), np.zeros(kernel.shape)
    d_padded = d_wide[:, *cut]
    for tap, at in places:
        for i, o in group:
            d_padded[:, *at, i] += g[..., o] @ kernel[*tap][:, o].T
            dk[*tap][:, o] = np.tensordot(padded[:, *at, i], g[..., o], [range(g.ndim - 1)] * 2)
    return y, d_wide[:, *inside], dk


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


# Every form meets every case; where a platform hands over to lax, or loops over a form that was covered, a few do.
FEW = ("stride 2 leaves a rest", "negative padding", "groups", "line of one channel")
SHARED = [(p, name) for p in ("cpu", "gpu") for name in (CASES if p == "cpu" else FEW)]
MAPPED = [(p, name) for p in ("cpu", "gpu") for name in (CASES if p == "gpu" else FEW)]


@pytest.mark.parametrize(("platform", "name"), SHARED, indirect=["platform"])
def test_values_and_both_gradients_are_those_of_the_definition(platform, name, rng):
    ours, _, images, kernel = both(CASES[name])
    x, k = integers(rng, *images), integers(rng, *kernel)
    results = jax.jit(value_and_gradients(ours))(x, k)
    assert {v.dtype for v in results} == {jnp.dtype("float32")}
    assert_equal(results, by_numpy(CASES[name], x, k))


@pytest.mark.parametrize(("platform", "name"), MAPPED, indirect=["platform"])
def test_one_kernel_per_client_gives_what_each_client_gets_alone(platform, name, rng):
    ours, _, images, kernel = both(CASES[name])
    x, k = integers(rng, 2, *images), integers(rng, 2, *kernel)
    alone = [by_numpy(CASES[name], x[i], k[i]) for i in range(2)]
    assert_equal(jax.jit(jax.vmap(value_and_gradients(ours)))(x, k), jax.tree.map(lambda *v: np.stack(v), *alone))


@pytest.mark.parametrize("name", ["three channels, wide", "groups", "depthwise", "line"])
def test_a_kernel_shared_by_all_clients_folds_their_images(name, platform, rng):
    ours, _, images, kernel = both(CASES[name])
    x, k = integers(rng, 3, *images), integers(rng, *kernel)

    def loss(x, k):
        return jnp.sum(jax.vmap(ours, (0, None))(x, k) ** 2)

    gradients = jax.jit(jax.grad(loss, (0, 1)))(x, k)
    _, dx, dk = by_numpy(CASES[name], x.reshape(-1, *images[1:]), k)
    assert_equal(gradients, (dx.reshape(x.shape), dk))


@pytest.mark.parametrize("which", ["images", "kernels"])
def test_mapping_over_one_argument_alone_works(which, platform, rng):
    ours, theirs, images, kernel = both(CASES["six channels, 5x5"])
    x, k = integers(rng, 2, *images), integers(rng, 2, *kernel)
    axes, args = ((0, None), (x, k[0])) if which == "images" else ((None, 0), (x[0], k))
    mapped = jax.jit(jax.vmap(value_and_gradients(ours), axes))(*args)
    assert_equal(mapped, jax.jit(jax.vmap(value_and_gradients(theirs), axes))(*args))


def test_nested_maps_work(platform, rng):
    ours, theirs, images, kernel = both(CASES["dilated and strided"])
    x, k = integers(rng, 2, 2, *images), integers(rng, 2, 2, *kernel)

    def twice(f):
        return jax.jit(jax.vmap(jax.vmap(value_and_gradients(f))))(x, k)

    assert_equal(twice(ours), twice(theirs))


@pytest.mark.parametrize("name", ["one channel", "six channels, 5x5", "32 channels", "line"])
def test_blocks_of_images_change_nothing(name, rng, monkeypatch):
    ours, _, images, kernel = both(CASES[name])
    x, k = integers(rng, 6, *images[1:]), integers(rng, *kernel)
    expected = by_numpy(CASES[name], x, k)
    for limit in (1, 4 * 3 * 900):  # one image at a time, and a few
        monkeypatch.setattr(conv, "TAPS_BYTES", limit)
        monkeypatch.setattr(conv, "BATCH_BYTES", limit)
        assert_equal(jax.jit(value_and_gradients(ours))(x, k), expected)


def training(f):
    """A client's training: gradient steps in a loop whose length is known at run time only."""

    def loss(k, x):
        return jnp.mean(nn.relu(f(x, k)) ** 2)

    return lambda steps, k, x: lax.fori_loop(0, steps, lambda _, k: k - 2.0**-6 * jax.grad(loss)(k, x), k)


def test_training_in_a_loop_follows_lax(platform, rng):
    ours, theirs, images, kernel = both(CASES["three channels, narrow"])
    x, k = integers(rng, *images), integers(rng, *kernel) / 8
    result, expected = (jax.jit(training(f))(3, k, x) for f in (ours, theirs))
    # Three steps on values of order one; each sums at most 2 * 5 * 5 * 27 products in float32.
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert float(jnp.max(jnp.abs(expected - k))) > 1e-2


def largest_group_count(f, *args) -> int:
    return max(map(int, re.findall(r"(?:feature|batch)_group_count=(\d+)", str(jax.make_jaxpr(f)(*args)))), default=0)


def test_training_with_one_kernel_per_client_holds_no_grouped_convolution(platform, rng):
    ours, theirs, images, kernel = both(CASES["six channels, 5x5"])
    x, k = integers(rng, 7, *images), integers(rng, 7, *kernel)
    assert largest_group_count(jax.vmap(training(theirs), (None, 0, 0)), 2, k, x) == 7  # the test can see one
    assert largest_group_count(jax.vmap(training(ours), (None, 0, 0)), 2, k, x) <= 1


def test_on_accelerators_one_kernel_per_client_means_matmuls_only(monkeypatch, rng):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    ours, _, images, kernel = both(CASES["three channels, wide"])
    x, k = integers(rng, 7, *images), integers(rng, 7, *kernel)
    text = str(jax.make_jaxpr(jax.vmap(value_and_gradients(ours)))(x, k))
    assert "dot_general" in text
    assert "conv_general_dilated[" not in text


def test_devices_of_a_pmap_get_what_each_gets_alone(rng, monkeypatch):
    monkeypatch.setattr(conv, "BATCH_BYTES", 1)  # also the loop over blocks
    ours, theirs, images, kernel = both(CASES["six channels, 5x5"])
    x, k = integers(rng, 2, *images), integers(rng, *kernel)
    expected = jax.jit(jax.vmap(value_and_gradients(theirs), (0, None)))(x, k)
    assert_equal(jax.pmap(value_and_gradients(ours), in_axes=(0, None))(x, k), expected)
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    shard = jax.sharding.PartitionSpec("d")
    on_mesh = jax.shard_map(
        lambda x, k: jax.tree.map(lambda v: v[None], value_and_gradients(ours)(x[0], k[0])),
        mesh=mesh,
        in_specs=shard,
        out_specs=shard,
    )
    assert_equal(jax.jit(on_mesh)(x, jnp.stack([k, k])), expected)


@pytest.mark.parametrize("name", ["stride 2 leaves a rest", "depthwise line, dilated"])
def test_derivatives_of_derivatives_are_those_of_lax(name, platform, rng):
    ours, theirs, images, kernel = both(CASES[name])
    x, k, dx, dk = (integers(rng, *shape) for shape in (images, kernel) * 2)

    def curvature(f):
        """Gradient of the slope of |f|^2 along (dx, dk): a Hessian-vector product by reverse mode over reverse mode."""

        def slope(x, k):
            along_x, along_k = jax.grad(lambda x, k: jnp.sum(f(x, k) ** 2), (0, 1))(x, k)
            return jnp.vdot(along_x, dx) + jnp.vdot(along_k, dk)

        return jax.jit(jax.grad(slope, (0, 1)))(x, k)

    assert_equal(curvature(ours), curvature(theirs))


@pytest.mark.parametrize("name", ["three channels, narrow", "six channels, 5x5", "depthwise"])
def test_bfloat16_stays_bfloat16_and_is_summed_in_float32(name, platform, rng):
    ours, _, images, kernel = both(CASES[name])
    x, k = integers(rng, *images), integers(rng, *kernel)
    exact = by_numpy(CASES[name], x, k)
    short = jax.jit(value_and_gradients(ours))(x.astype(jnp.bfloat16), k.astype(jnp.bfloat16))
    for a, b in zip(short, exact, strict=True):
        assert a.dtype == jnp.bfloat16
        # y is rounded once (2^-9 of its size); the gradients use the rounded y in sums of up to 400 terms.
        assert np.max(np.abs(np.asarray(a, np.float64) - b)) <= 2.0**-7 * np.max(np.abs(b))


FALLBACKS = {
    "dilated input": ((2, 4, 4, 3), dict(lhs_dilation=(2, 2), dimension_numbers=IMAGE)),
    "channels first": ((2, 3, 4, 4), dict(dimension_numbers=("NCHW", "HWIO", "NCHW"))),
    "batch groups": ((4, 4, 4, 3), dict(batch_group_count=2, dimension_numbers=IMAGE)),
    "wider result": ((2, 4, 4, 3), dict(preferred_element_type=jnp.float32, dimension_numbers=IMAGE)),
}


@pytest.mark.parametrize(("shape", "settings"), FALLBACKS.values(), ids=FALLBACKS)
def test_what_the_forms_do_not_cover_goes_to_lax(shape, settings, rng):
    x, k = integers(rng, *shape).astype(jnp.bfloat16), integers(rng, 3, 3, 3, 4).astype(jnp.bfloat16)
    ours, theirs = (
        f(x, k, (1, 1), ((1, 1), (2, 0)), **settings) for f in (conv_general_dilated, lax.conv_general_dilated)
    )
    assert ours.dtype == theirs.dtype
    np.testing.assert_array_equal(ours.astype(jnp.float32), theirs.astype(jnp.float32))


def test_integers_and_three_dimensions_go_to_lax(rng):
    x, k = rng.integers(-3, 4, (2, 4, 4, 2)).astype(np.int32), rng.integers(-3, 4, (3, 3, 2, 2)).astype(np.int32)
    args = (x, k, (1, 1), "SAME")
    assert_equal(*(f(*args, dimension_numbers=IMAGE) for f in (conv_general_dilated, lax.conv_general_dilated)))
    args = (integers(rng, 1, 3, 3, 3, 2), integers(rng, 2, 2, 2, 2, 2), (1, 1, 1), "VALID")
    layout = ("NDHWC", "DHWIO", "NDHWC")
    assert_equal(*(f(*args, dimension_numbers=layout) for f in (conv_general_dilated, lax.conv_general_dilated)))


def test_wrong_shapes_are_refused_as_lax_refuses_them():
    args = (np.ones((1, 4, 4, 3), np.float32), np.ones((3, 3, 2, 4), np.float32), (1, 1), "SAME")
    messages = []
    for f in (conv_general_dilated, lax.conv_general_dilated):
        with pytest.raises(ValueError, match="feature dimension") as error:
            f(*args, dimension_numbers=IMAGE)
        messages.append(str(error.value))
    assert messages[0] == messages[1]


def test_a_flax_layer_has_the_parameters_it_would_have_with_lax():
    made = [
        jax.jit(nn.Conv(5, (3, 3), conv_general_dilated=f).init)(jax.random.key(7), np.zeros((1, 4, 4, 3)))
        for f in (conv_general_dilated, None)
    ]
    assert jax.tree.structure(made[0]) == jax.tree.structure(made[1])
    assert_equal(*made)


@pytest.mark.parametrize("padding", ["SAME", "VALID", "CIRCULAR", 1])
def test_a_flax_layer_gives_what_it_would_give_with_lax(padding, rng):
    variables = {"params": {"kernel": integers(rng, 3, 3, 3, 5), "bias": integers(rng, 5)}}
    layers = [nn.Conv(5, (3, 3), padding=padding, conv_general_dilated=f) for f in (conv_general_dilated, None)]
    x = integers(np.random.default_rng(1), 2, 6, 6, 3)
    assert_equal(*jax.jit(lambda v, x: [layer.apply(v, x) for layer in layers])(variables, x))
