"""Stochastic rounding: two neighbors, the right probability, values on the grid stay.

The dither can be given explicitly to the bit arithmetic, so probabilities are counted exactly over all 2**20 cases. The
tests with keys are statistical; each states its draws and standard errors. The laws "8, 9, 10" of the FP8 grid (mean,
error ratio, error of averages) are tested at alpha = 1 in test_scales.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.numerics import FORMATS, bits, get_format, stochastic_cast, stochastic_round, to_float32

KEY = jax.random.key(5)
EXTREMES = (np.uint32(0), np.uint32(0xFFFFFFFF))  # the draws that move a value down, or up, if anything can
FORMAT_LIST = tuple(FORMATS.values())


def finite_values(fmt):
    magnitudes = np.arange(fmt.max_code + 1, dtype=np.uint8).view(fmt.dtype).astype(np.float32)
    return np.concatenate([-magnitudes[:0:-1], magnitudes])


def neighbors(x, fmt):
    """The largest grid value <= x and the smallest >= x, for x already clipped."""
    grid = finite_values(fmt)
    return grid[np.searchsorted(grid, x, side="right") - 1], grid[np.searchsorted(grid, x, side="left")]


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_every_result_is_one_of_the_two_neighbors(fmt):
    x = np.random.default_rng(0).normal(size=1 << 16).astype(np.float32)
    x = x * np.float32(10.0) ** np.random.default_rng(1).integers(-6, 6, x.size).astype(np.float32)
    lower, upper = neighbors(np.clip(x, -fmt.max, fmt.max), fmt)
    got = np.asarray(stochastic_round(KEY, x, fmt))
    assert ((got == lower) | (got == upper)).all()
    assert (got == lower).any()
    assert (got == upper).any()


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_the_probability_of_rounding_up_is_the_fraction_to_20_bits(fmt):
    fraction_bits = 23 - fmt.mantissa_bits
    dither = (np.arange(1 << fraction_bits, dtype=np.uint32) << np.uint32(32 - fraction_bits)) | np.uint32(7)
    round_up = jax.jit(lambda x: bits.stochastic_values(jnp.full(dither.shape, x), dither, fmt))
    step = fmt.smallest_subnormal
    # (lower neighbor, step above it): two normal binades, the lowest one, and the subnormal range.
    for lower, width in ((1.0, 2.0**-fmt.mantissa_bits), (fmt.smallest_normal, step), (0.0, step), (step, step)):
        for fraction in (0.5, 0.25, 0.123, 0.999, 0.01):
            fixed = np.floor(fraction * 2**fraction_bits)  # a fraction that float32 can hold at this place
            x = lower + fixed * 2.0**-fraction_bits * width
            got = np.asarray(round_up(np.float32(x)))
            assert set(np.unique(got)) == {np.float32(lower), np.float32(lower + width)}
            assert (got > lower).sum() == fixed


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_values_on_the_grid_never_move(fmt):
    grid = finite_values(fmt)
    for dither in EXTREMES:
        np.testing.assert_array_equal(np.asarray(bits.stochastic_values(grid, dither, fmt)), grid)
    np.testing.assert_array_equal(np.asarray(stochastic_round(KEY, grid, fmt)), grid)


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_values_a_few_roundings_off_the_grid_count_as_on_it(fmt):
    grid = finite_values(fmt)
    # Relative errors in units of float32 rounding; the limit is 32.
    for roundings in (1, 10, 30, -1, -10, -30):
        x = (grid.astype(np.float64) * (1 + roundings * 2.0**-24)).astype(np.float32)
        for dither in EXTREMES:
            np.testing.assert_array_equal(np.asarray(bits.stochastic_values(x, dither, fmt)), grid)


def test_tiny_values_are_not_lost():
    # 2**20 draws of a thousandth of the smallest step: 1049 +- 32 of them go up; 4 standard errors.
    fmt = get_format("e4m3fnuz")
    x = np.full(1 << 20, fmt.smallest_subnormal / 1000, np.float32)
    got = np.asarray(stochastic_round(KEY, x, fmt))
    assert set(np.unique(got)) == {np.float32(0), np.float32(fmt.smallest_subnormal)}
    expected = x.size / 1000
    assert abs((got > 0).sum() - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_rounding_saturates_and_keeps_nan(fmt):
    x = np.array([fmt.max * 1.01, 3e38, np.inf, -fmt.max * 1.5, -np.inf, np.nan, 1e-40, -1e-40], np.float32)
    got = np.asarray(stochastic_round(KEY, x, fmt))
    np.testing.assert_array_equal(got[:5], np.float32([fmt.max, fmt.max, fmt.max, -fmt.max, -fmt.max]))
    assert np.isnan(got[5])
    np.testing.assert_array_equal(got[6:], [0, 0])
    codes = np.asarray(stochastic_cast(KEY, x, fmt))
    np.testing.assert_array_equal(codes.astype(np.float32), got)


def test_fnuz_writes_its_nan_pattern_for_no_number():
    x = -np.abs(np.random.default_rng(3).normal(size=1 << 16)).astype(np.float32) * 2.0**-12
    codes = np.asarray(stochastic_cast(KEY, x, "e4m3fnuz")).view(np.uint8)
    assert (codes == 0).any()  # negative values do round to zero here
    assert (codes != 0x80).all()


def test_rounding_is_symmetric_in_sign():
    x = np.random.default_rng(4).normal(size=1000).astype(np.float32)
    np.testing.assert_array_equal(
        np.asarray(stochastic_round(KEY, -x, "e4m3fn")), -np.asarray(stochastic_round(KEY, x, "e4m3fn"))
    )


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_cast_and_round_make_the_same_draws(fmt):
    x = np.random.default_rng(5).normal(size=(40, 25)).astype(np.float32)
    codes = stochastic_cast(KEY, x, fmt)
    assert codes.dtype == fmt.dtype
    np.testing.assert_array_equal(np.asarray(to_float32(codes)), np.asarray(stochastic_round(KEY, x, fmt)))


def test_vmap_over_keys_equals_a_loop_over_keys():
    keys = jax.random.split(KEY, 3)
    x = np.random.default_rng(6).normal(size=(3, 100)).astype(np.float32)
    batched = np.asarray(jax.vmap(lambda k, x: stochastic_cast(k, x, "e4m3fn"))(keys, x)).view(np.uint8)
    for key, row, codes in zip(keys, x, batched, strict=True):
        np.testing.assert_array_equal(np.asarray(stochastic_cast(key, row, "e4m3fn")).view(np.uint8), codes)


def test_leaves_with_offsets_draw_what_the_whole_would():
    x = np.random.default_rng(7).normal(size=100).astype(np.float32)
    whole = np.asarray(stochastic_round(KEY, x, "e4m3fn"))
    np.testing.assert_array_equal(np.asarray(stochastic_round(KEY, x[:30], "e4m3fn")), whole[:30])
    rest = np.asarray(stochastic_round(KEY, x[30:].reshape(7, 10), "e4m3fn", offset=30))
    np.testing.assert_array_equal(rest.ravel(), whole[30:])
