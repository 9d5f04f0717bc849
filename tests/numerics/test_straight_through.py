"""Straight-through gradients against closed forms in NumPy and automatic differentiation of the textbook formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics import FORMATS, decode, fake_quantize, get_format, quantize, quantize_gradient

FORMAT_LIST = tuple(FORMATS.values())


def gaussian(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradients(x, alpha, upstream, fmt):
    _, pull = jax.vjp(lambda x, a: fake_quantize(x, a, fmt), jnp.asarray(x), jnp.float32(alpha))
    dx, dalpha = pull(jnp.asarray(upstream))
    return np.asarray(dx), float(dalpha)


def textbook(x, alpha, fmt):
    """The quantizer as it is usually printed, with log2 and exp2, rint passing gradients, floor constant."""
    bias = fmt.bias + jnp.log2(fmt.max) - jnp.log2(alpha)
    clipped = jnp.minimum(jnp.maximum(x, -alpha), alpha)
    exponent = jnp.maximum(jnp.floor(jnp.log2(jnp.abs(clipped)) + bias), 1.0)
    step = jnp.exp2(exponent - bias - fmt.mantissa_bits)
    t = clipped / step
    return step * (t + jax.lax.stop_gradient(jnp.round(t) - t))


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_11_the_rule_is_its_closed_form(fmt):
    """Law 11: dQ/dx = [|x| <= alpha]; dQ/dalpha = (Q(x) - x) / alpha inside, sign(x) outside. One element at a time."""
    alpha = np.float32(1.3)
    x = gaussian(2000)
    assert (np.abs(x) > alpha).any()
    gradient = jax.jit(jax.vmap(jax.grad(lambda x, a: fake_quantize(x, a, fmt), argnums=(0, 1)), (0, None)))
    dx, dalpha = (np.asarray(g) for g in gradient(x, alpha))
    inside = np.abs(x) <= alpha
    np.testing.assert_array_equal(dx, inside.astype(np.float32))
    q = np.asarray(quantize(x, alpha, fmt)).astype(np.float64)
    want = np.where(inside, (q - x) / np.float64(alpha), np.sign(x))
    np.testing.assert_allclose(dalpha, want, atol=1e-6)


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_11_automatic_differentiation_of_the_textbook_formula_agrees(fmt):
    """Law 11: value and both gradients, the textbook in float64."""
    x, upstream, alpha = gaussian((30, 40), 1), gaussian((30, 40), 2), 0.9
    dx, dalpha = gradients(x, alpha, upstream, fmt)
    with jax.enable_x64(True):
        x64, alpha64 = x.astype(np.float64), np.float64(np.float32(alpha))
        q, pull = jax.vjp(lambda x, a: textbook(x, a, fmt), jnp.asarray(x64), jnp.asarray(alpha64))
        want_x, want_alpha = pull(jnp.asarray(upstream, jnp.float64))
    # A decoded value is off by three float32 roundings; the gradient for alpha is a sum of 1200 terms, of which only
    # the rounding of Q(x) inside counts: 1200 * 3 * 2**-24 at the very most.
    np.testing.assert_allclose(np.asarray(fake_quantize(x, alpha, fmt)), np.asarray(q), rtol=3 * 2.0**-24)
    np.testing.assert_array_equal(dx, np.asarray(want_x).astype(np.float32))
    assert dalpha == pytest.approx(float(want_alpha), abs=2e-4)


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_12_the_gradient_for_alpha_is_zero_on_the_grid_and_one_outside(fmt):
    """Law 12: exactly 0 for every grid value inside the range, exactly +1 / -1 outside."""
    codes = np.arange(fmt.max_code + 1, dtype=np.uint8)
    for alpha in (1.0, 0.37, 1e-4):
        grid = np.asarray(decode(codes, alpha, fmt))
        _, dalpha = gradients(grid, alpha, np.ones_like(grid), fmt)
        assert dalpha == 0.0
        assert gradients(np.float32(1.5 * alpha), alpha, np.float32(1), fmt) == (0.0, 1.0)
        assert gradients(np.float32(-1.5 * alpha), alpha, np.float32(1), fmt) == (0.0, -1.0)


def test_the_forward_value_is_quantize_bit_for_bit():
    x = gaussian((20, 30), 3)
    for fmt in FORMAT_LIST:
        np.testing.assert_array_equal(
            np.asarray(fake_quantize(x, 0.7, fmt)), np.asarray(quantize(x, np.float32(0.7), fmt))
        )


def test_gradients_of_a_batch_of_clients_are_those_of_each_client():
    x, upstream, alphas = gaussian((3, 50, 4), 4), gaussian((3, 50, 4), 5), np.float32([0.5, 1.0, 2.0])

    @jax.jit
    @jax.vmap
    def batched(x, alpha, upstream):
        return jax.vjp(lambda x, a: fake_quantize(x, a, "e4m3fn"), x, alpha)[1](upstream)

    dx, dalpha = batched(x, alphas, upstream)
    for i in range(3):
        one_x, one_alpha = gradients(x[i], alphas[i], upstream[i], "e4m3fn")
        np.testing.assert_array_equal(np.asarray(dx[i]), one_x)
        assert float(dalpha[i]) == pytest.approx(one_alpha, rel=1e-5)  # 200 terms summed in another order


def test_the_backward_pass_keeps_the_input_and_alpha_alone():
    x = jnp.asarray(gaussian((100, 100)))
    _, pull = jax.vjp(lambda x, a: fake_quantize(x, a, "e4m3fn"), x, jnp.float32(1))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert x.nbytes <= kept <= x.nbytes + 64


def test_an_alpha_below_the_floor_still_gets_a_gradient():
    _, dalpha = gradients(np.float32([1.0, 2.0, -1.0]), 0.0, np.ones(3, np.float32), "e4m3fn")
    assert dalpha == 1.0


def test_nan_passes_through_and_shows_in_the_gradient():
    x = np.float32([np.nan, 0.5])
    assert np.isnan(np.asarray(fake_quantize(x, 1.0, "e4m3fn"))).tolist() == [True, False]
    assert np.isnan(gradients(x, 1.0, np.ones(2, np.float32), "e4m3fn")[1])


def test_an_alpha_that_is_no_scalar_is_refused():
    with pytest.raises(UserError, match=r"alpha has shape \(3,\)"):
        fake_quantize(np.ones(3), np.ones(3), "e4m3fn")


def backward(x, upstream, *settings):
    return np.asarray(jax.vjp(lambda x: quantize_gradient(x, *settings), jnp.asarray(x))[1](jnp.asarray(upstream))[0])


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_the_gradient_is_rounded_to_the_format_scaled_to_its_own_maximum(fmt):
    x, upstream = gaussian(5000, 6), gaussian(5000, 7) * np.float32(1e-5)
    np.testing.assert_array_equal(np.asarray(quantize_gradient(x, fmt)), x)
    alpha = np.abs(upstream).max().astype(np.float64)
    got = backward(x, upstream, fmt).astype(np.float64)
    want = (upstream.astype(np.float64) * (fmt.max / alpha)).astype(fmt.dtype).astype(np.float64)
    # Rounding of the scaled value may fall the other way at ties; none among these values.
    np.testing.assert_allclose(got, want * (alpha / fmt.max), rtol=3 * 2.0**-24)
    assert np.abs(got).max() == alpha


def test_zero_and_tiny_gradients_survive():
    x = np.ones(4, np.float32)
    np.testing.assert_array_equal(backward(x, np.zeros(4, np.float32)), np.zeros(4))
    tiny = np.float32([1e-13, -2e-13, 0, 4e-13])  # below the floor of alpha: e5m2 has the exponents to spare
    np.testing.assert_allclose(backward(x, tiny), tiny, rtol=1 / 9)


def test_each_example_of_a_batch_has_its_own_scale():
    upstream = gaussian((3, 100), 8) * np.float32([[1.0], [1e-4], [1e3]])
    x = np.zeros_like(upstream)
    batched = jax.jit(jax.vmap(lambda x, u: jax.vjp(quantize_gradient, x)[1](u)[0]))(x, upstream)
    for row, u in zip(np.asarray(batched), upstream, strict=True):
        np.testing.assert_array_equal(row, backward(np.zeros(100, np.float32), u))


def test_stochastic_rounding_of_the_gradient_has_its_mean():
    # 10**5 copies of 0.3 beside a maximum of 1; e5m2 has neighbors 4 / 14 and 5 / 14 there.
    upstream = np.append(np.full(100_000, 0.3, np.float32), np.float32(1))
    got = jax.jit(jax.grad(lambda x, k: jnp.sum(upstream * quantize_gradient(x, "e5m2", k))))(
        np.zeros_like(upstream), jax.random.key(3)
    )
    got = np.asarray(got).astype(np.float64)
    assert got[-1] == 1
    np.testing.assert_allclose(np.unique(got[:-1]), [4 / 14, 5 / 14], rtol=1e-6)
    fraction = (0.3 - 4 / 14) * 14
    error = np.sqrt(fraction * (1 - fraction) / 100_000) / 14
    assert abs(got[:-1].mean() - 0.3) < 4 * error + 2.0**-18 * 0.3


def test_formats_are_checked_before_tracing():
    with pytest.raises(UserError, match="unknown number format 'e5m3'"):
        quantize_gradient(np.ones(2), "e5m3")
    with pytest.raises(UserError, match="unknown number format"):
        fake_quantize(np.ones(2), 1.0, "fp8")
    assert get_format("e5m2").mantissa_bits == 2
