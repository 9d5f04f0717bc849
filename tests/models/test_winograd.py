"""Winograd's filters against the definition in float64: they round on the way, so results are close, not equal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax8.models import _winograd as winograd
from fedjax8.models.conv import conv_general_dilated, geometry_of

LAYOUT = ("NHWC", "HWIO", "NHWC")
# images, features, padding
CASES = {
    "tiles fit": ((3, 18, 14, 16), 24, "VALID"),
    "same": ((3, 16, 16, 16), 16, "SAME"),
    "half tiles": ((4, 13, 15, 16), 16, "SAME"),
    "uneven padding": ((4, 12, 13, 16), 16, ((2, 0), (1, 3))),
    "cut images": ((4, 16, 17, 16), 16, ((-1, 0), (2, -2))),
}
TOLERANCE = 5e-6
"""Of the largest value: three times what `_winograd` states, as the largest of another draw may be larger."""


def draw(rng, images, features):
    normal = (rng.standard_normal(shape).astype(np.float32) for shape in (images, (3, 3, images[-1], features)))
    return tuple(normal)


def settings(padding):
    return {"window_strides": (1, 1), "padding": padding, "dimension_numbers": LAYOUT}


def by_definition(padding, x, kernel):
    """y, dx and dk for the cotangent 2y, summed over taps in float64."""
    x, kernel = x.astype(np.float64), kernel.astype(np.float64)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], (3, 3), (1, 1), padding)
    wide = np.pad(x, [(0, 0), *((max(a, 0), max(b, 0)) for a, b in padding), (0, 0)])
    rows, columns = (
        slice(max(-a, 0), n - max(-b, 0)) for (a, b), n in zip(padding, wide.shape[1:3], strict=True)
    )  # negative padding
    height, width = (len(range(n)[part]) - 2 for part, n in zip((rows, columns), wide.shape[1:3], strict=True))

    def at(image, i, j):
        return image[:, rows, columns][:, i : i + height, j : j + width]

    taps = list(np.ndindex(3, 3))
    y = sum(at(wide, *tap) @ kernel[tap] for tap in taps)
    d_wide, dk = np.zeros_like(wide), np.zeros_like(kernel)
    for tap in taps:
        at(d_wide, *tap)[...] += 2 * y @ kernel[tap].T
        dk[tap] = np.tensordot(at(wide, *tap), 2 * y, [(0, 1, 2)] * 2)
    inside = (slice(max(a, 0), max(a, 0) + n) for (a, _), n in zip(padding, x.shape[1:3], strict=True))
    return y, d_wide[:, *inside], dk


def value_and_gradients(padding):
    def run(x, kernel):
        y, pull = jax.vjp(functools.partial(conv_general_dilated, **settings(padding)), x, kernel)
        return y, *pull(2 * y)

    return run


def assert_close(ours, exact):
    for a, b in zip(ours, exact, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.max(np.abs(b)))


def pays(x, kernel, padding, **changed):
    geometry = geometry_of(x, kernel, **settings(padding) | changed)
    return winograd.pays(geometry, len(x), *kernel.shape[2:], x.dtype)


@pytest.mark.parametrize("block_bytes", [1, 2**30], ids=["in blocks", "at once"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_both_gradients_are_those_of_the_definition(name, block_bytes, rng, monkeypatch):
    images, features, padding = CASES[name]
    monkeypatch.setattr(winograd, "BLOCK_BYTES", block_bytes)
    x, kernel = draw(rng, images, features)
    assert pays(x, kernel, padding)
    assert_close(jax.jit(value_and_gradients(padding))(x, kernel), by_definition(padding, x, kernel))


def test_one_kernel_per_client_gives_what_each_client_gets_alone(rng):
    images, features, padding = CASES["same"]
    clients = [draw(rng, images, features) for _ in range(2)]
    ours = jax.jit(jax.vmap(value_and_gradients(padding)))(*map(np.stack, zip(*clients, strict=True)))
    for i, client in enumerate(clients):
        assert_close([v[i] for v in ours], by_definition(padding, *client))


def test_a_constant_image_and_a_kernel_of_one_tap_give_that_constant():
    kernel = np.zeros((3, 3, 16, 16), np.float32)
    kernel[1, 1] = np.eye(16)
    y = conv_general_dilated(np.full((2, 16, 16, 16), 3.0, np.float32), kernel, **settings("SAME"))
    np.testing.assert_allclose(y, 3.0, rtol=TOLERANCE)


@pytest.mark.parametrize("shape", [(2, 16, 16, 16), (1, 8, 8, 16), (20, 5, 5, 16), (2, 16, 16, 15)])
def test_only_where_they_save_work_do_they_replace_the_other_forms(shape, rng):
    assert pays(*draw(rng, shape, 16), "SAME") == (shape == (2, 16, 16, 16))


@pytest.mark.parametrize(
    "changed",
    [{"window_strides": (2, 2)}, {"rhs_dilation": (2, 2)}, {"precision": lax.Precision.HIGHEST}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_other_strides_dilations_precisions_and_dtypes_are_left_to_the_other_forms(changed, rng):
    dtype = changed.get("dtype", "float32")
    changed = {name: value for name, value in changed.items() if name != "dtype"}
    x, kernel = (v.astype(dtype) for v in draw(rng, (8, 16, 16, 16), 16))
    assert not pays(x, kernel, "SAME", **changed)
