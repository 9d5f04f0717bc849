"""Grids scaled to a clipping value: the laws of the FP8 grid, against closed forms in NumPy float64 and ml_dtypes."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics import FORMATS, MIN_ALPHA, bits, decode, encode, get_format, max_abs, quantize, scale_for
from fedjax8.numerics.scales import cell

EPS = 2.0**-24  # relative error of one float32 rounding
FORMAT_LIST = tuple(FORMATS.values())
ALPHAS = (1.0, 0.37, 240.0, 1e-4, 3.14159, 2.0**-20, 7e5)
PAPER = get_format("e4m3fnuz")


def paper_grid():
    """U(k) of the closed form: alpha = 1.875, 4 exponent and 3 mantissa bits, k = 0..127."""
    k = np.arange(128)
    return np.where(k < 8, k * 2.0**-17, (8 + k % 8) * 2.0 ** (k // 8 - 18))


def magnitudes(fmt):
    return np.arange(fmt.max_code + 1, dtype=np.uint8).view(fmt.dtype).astype(np.float64)


def steps(x, alpha, fmt):
    """Grid step at each x, in float64."""
    t = np.minimum(np.abs(x.astype(np.float64)) / alpha, 1) * fmt.max
    with np.errstate(divide="ignore"):
        exponent = np.maximum(np.floor(np.log2(t)), np.log2(fmt.smallest_normal))
    return 2.0 ** (exponent - fmt.mantissa_bits) * (alpha / fmt.max)


def gaussian(count, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=count)).astype(np.float32)


# Laws 1 to 7: grid and codes.


def test_law_1_at_alpha_240_the_codes_are_those_of_e4m3fnuz():
    """Law 1: the bias b = 2**e - log2(alpha) + log2(2 - 2**-m) - 1 is 8 at alpha = 240, the bias of the type."""
    assert 2**4 - np.log2(240) + np.log2(2 - 2.0**-3) - 1 == pytest.approx(8, abs=1e-14)
    assert PAPER.bias == 8
    codes = np.arange(128, dtype=np.uint8)
    got = np.asarray(decode(codes, 240.0, "e4m3fnuz"))
    np.testing.assert_array_equal(got, codes.view(ml_dtypes.float8_e4m3fnuz).astype(np.float32))


def test_law_1_at_alpha_480_the_codes_below_the_top_are_those_of_e4m3fn():
    """Law 1: b = 7 at alpha = 480, the bias of e4m3fn, which gives its top code to NaN."""
    assert 2**4 - np.log2(480) + np.log2(2 - 2.0**-3) - 1 == pytest.approx(7, abs=1e-14)
    assert get_format("e4m3fn").bias == 7
    codes = np.arange(127, dtype=np.uint8)
    got = np.asarray(decode(codes, 480.0, "e4m3fnuz"))
    np.testing.assert_array_equal(got, codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_law_1_at_alpha_1_the_smallest_numbers_are_those_computed_by_hand():
    """Law 1: smallest positive 2**-17 / 1.875, smallest normal 2**-14 / 1.875."""
    got = np.asarray(decode(np.array([1, 8], np.uint8), 1.0, "e4m3fnuz"))
    np.testing.assert_allclose(got, [4.0690104e-6, 3.2552083e-5], rtol=2e-7)  # eight digits given


@pytest.mark.parametrize("alpha", ALPHAS)
def test_law_2_the_grid_is_the_closed_form_of_the_papers(alpha):
    """Law 2: U(k) strictly increasing, 255 distinct signed values, the largest alpha itself."""
    grid = paper_grid()
    assert (grid[127], grid[8], grid[7]) == (1.875, 2.0**-14, 7 * 2.0**-17)
    got = np.asarray(decode(np.arange(256, dtype=np.uint8), alpha, "e4m3fnuz")).astype(np.float64)
    # Scale and product are rounded, and 1 / fmt.max is: three roundings.
    np.testing.assert_allclose(got[:128], grid * np.float32(alpha) / 1.875, rtol=3 * EPS)
    assert (np.diff(got[:128]) > 0).all()
    assert np.isnan(got[128])
    np.testing.assert_array_equal(got[129:], -got[1:128])
    assert len(np.unique(np.delete(got, 128))) == 255


def test_law_3_known_values_lie_between_known_neighbors():
    """Law 3: the neighbors of three values at alpha = 1, by hand."""
    grid = np.asarray(decode(np.arange(128, dtype=np.uint8), 1.0, "e4m3fnuz"))
    for x, lower, upper in ((0.9, 0.8666667, 0.9333333), (0.5001, 0.5, 0.5333333), (0.123, 0.1166667, 0.125)):
        k = np.searchsorted(grid, x)
        np.testing.assert_allclose([grid[k - 1], grid[k]], [lower, upper], atol=1e-7)  # seven decimals given
        assert float(quantize(np.float32(x), 1.0, "e4m3fnuz")) in (grid[k - 1], grid[k])


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_4_values_on_the_grid_return_to_their_codes(fmt):
    """Law 4: decode then encode gives identical codes, to nearest and with any key, for 1000 clipping values."""
    codes = np.arange(256, dtype=np.uint8)
    values = codes.view(fmt.dtype).astype(np.float32)
    codes = codes[np.isfinite(values)]
    rng = np.random.default_rng(0)
    alphas = np.exp(rng.uniform(np.log(MIN_ALPHA), np.log(1e30), (1000, 1))).astype(np.float32)

    @jax.jit
    def round_trips(alphas, key):
        x = decode(jnp.broadcast_to(codes, (len(alphas), len(codes))), alphas, fmt)
        return x, encode(x, alphas, fmt), encode(x, alphas, fmt, key)

    x, nearest, random = round_trips(alphas, jax.random.key(0))
    # A key makes the draws that could move a code about once in 10**6 times; here they are made for certain.
    units = np.asarray(x) * (np.float32(fmt.max) / alphas)
    extremes = [bits.stochastic_codes(units, np.uint32(dither), fmt) for dither in (0, 0xFFFFFFFF)]
    for again in (nearest, random, *extremes):
        np.testing.assert_array_equal(np.asarray(again).view(np.uint8), np.tile(codes, (1000, 1)))


def test_law_4_averages_of_equal_contributions_return_to_their_codes():
    """Law 4, as a server meets it: weighted sums of equal values, weights that sum to one only up to rounding."""
    codes = np.delete(np.arange(256, dtype=np.uint8), 128)
    weights = np.random.default_rng(0).uniform(size=30).astype(np.float32)
    weights /= weights.sum()
    value = np.asarray(decode(codes, 0.3, "e4m3fnuz"))
    average, alpha = np.zeros_like(value), np.float32(0)
    for weight in weights:
        average, alpha = average + weight * value, alpha + weight * np.float32(0.3)
    assert (average != value).any()
    units = average * (np.float32(PAPER.max) / alpha)
    for dither in (0, 0xFFFFFFFF):  # the draws that could move a code
        np.testing.assert_array_equal(np.asarray(bits.stochastic_codes(units, np.uint32(dither), PAPER)), codes)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_5_quantization_is_clip_cast_and_rescale(fmt, alpha):
    """Law 5: against ml_dtypes, in float64 up to the cast, for random values."""
    x = gaussian(20_000, scale=alpha / 2)
    alpha = np.float64(np.float32(alpha))
    units = np.clip(x, -alpha, alpha) * (fmt.max / alpha)
    want = units.astype(fmt.dtype).astype(np.float64) * (alpha / fmt.max)
    got = np.asarray(quantize(x, np.float32(alpha), fmt)).astype(np.float64)
    # Near a tie, within the rounding of x * (max / alpha), either neighbor is right.
    t = units / (steps(x, alpha, fmt) * fmt.max / alpha)
    near_tie = np.abs(np.abs(t - np.floor(t)) - 0.5) < 32 * 4 * EPS
    assert near_tie.mean() < 0.01
    np.testing.assert_allclose(got[~near_tie], want[~near_tie], rtol=3 * EPS)
    codes = np.asarray(encode(x, np.float32(alpha), fmt))
    np.testing.assert_array_equal(codes[~near_tie], units.astype(fmt.dtype)[~near_tie])


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_6_the_error_is_at_most_half_a_step(fmt):
    """Law 6: |Q(x) - x| <= s / 2, and 1 / 17 of normal values for three mantissa bits (1 / 9 for two)."""
    alpha = 0.7
    x = gaussian(50_000, seed=1, scale=0.2) * np.float32(10.0) ** -np.arange(50_000, dtype=np.float32).__mod__(6)
    x = x[np.abs(x) <= alpha]
    error = np.abs(np.asarray(quantize(x, alpha, fmt)).astype(np.float64) - x)
    assert (error <= steps(x, np.float64(np.float32(alpha)), fmt) / 2 + 8 * EPS * np.abs(x)).all()
    normal = np.abs(x) >= alpha * fmt.smallest_normal / fmt.max
    largest = (error[normal] / np.abs(x[normal])).max()
    bound = 1 / (2 ** (fmt.mantissa_bits + 1) + 1)
    assert 0.95 * bound < largest <= bound * (1 + 64 * EPS)  # attained at the ties, just above powers of two


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_6_quantization_is_odd_and_scales_with_powers_of_two(fmt):
    """Law 6: Q(-x) = -Q(x) and Q(c x; c alpha) = c Q(x; alpha), bit for bit."""
    x = gaussian(10_000, seed=2)
    alpha = np.float32(1.7)
    q = np.asarray(quantize(x, alpha, fmt))
    np.testing.assert_array_equal(np.asarray(quantize(-x, alpha, fmt)), -q)
    for c in np.float32(2.0) ** np.array([-20, -3, 1, 10, 60], np.float32):
        np.testing.assert_array_equal(np.asarray(quantize(c * x, c * alpha, fmt)), c * q)


def test_law_7_the_pattern_of_negative_zero_never_appears():
    """Law 7: no number is written as 0x80, which the fnuz types read as NaN."""
    x = gaussian(1 << 16, seed=3) * np.float32(10.0) ** -np.arange(1 << 16, dtype=np.float32).__mod__(9)
    for key in (None, jax.random.key(0)):
        codes = np.asarray(encode(np.append(x, np.float32(-0.0)), 1.0, "e4m3fnuz", key)).view(np.uint8)
        assert (codes != 0x80).all()
        assert (codes == 0).any()


# Laws 8 to 10: stochastic rounding on the scaled grid.


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_law_8_the_mean_of_many_draws_is_the_value(fmt):
    """Law 8: 2 * 10**5 draws at alpha = 1, within 4 standard errors of each of seven values."""
    values = np.array([0.9, 0.5001, 0.123, 1e-3, 2e-6, -0.77, 0.99999], np.float32)
    count = 200_000
    draws = decode(encode(np.tile(values, (count, 1)), 1.0, fmt, jax.random.key(8)), 1.0, fmt)
    draws = np.asarray(draws).astype(np.float64)
    step = steps(values, 1.0, fmt)
    fraction = np.abs(values.astype(np.float64)) / step % 1
    error = step * np.sqrt(fraction * (1 - fraction) / count)
    assert (np.abs(draws.mean(0) - values) <= 4 * error + 2.0**-18 * np.abs(values)).all()
    assert (np.ptp(draws, axis=0) <= step + 8 * EPS).all()  # two neighbors, nothing else


def test_law_9_random_rounding_costs_twice_the_error_of_the_nearest():
    """Law 9: MSE ratio 2.00 +- 0.02 on 10**6 Gaussian values (its standard error is about 0.003)."""
    x = gaussian(1_000_000, seed=4)
    alpha = max_abs(x)
    nearest = np.asarray(quantize(x, alpha, PAPER)).astype(np.float64)
    rounded = np.asarray(decode(encode(x, alpha, PAPER, jax.random.key(9)), alpha, PAPER))
    ratio = ((rounded - x.astype(np.float64)) ** 2).mean() / ((nearest - x) ** 2).mean()
    assert abs(ratio - 2) < 0.02


def test_law_10_the_error_of_an_average_shrinks_with_its_size():
    """Law 10: MSE of the mean of M independent draws over MSE of the nearest = 2 / M; 2 * 10**5 values, 2 percent."""
    x = gaussian(200_000, seed=5)
    alpha = max_abs(x)
    nearest = ((np.asarray(quantize(x, alpha, PAPER)).astype(np.float64) - x) ** 2).mean()

    @jax.jit
    def draw(key):
        return decode(encode(x, alpha, PAPER, key), alpha, PAPER)

    total, errors = np.zeros(x.shape), {}
    for count in range(1, 51):
        total += np.asarray(draw(jax.random.fold_in(jax.random.key(10), count)))
        if count in (1, 2, 10, 50):
            errors[count] = ((total / count - x) ** 2).mean() / nearest
    for count, ratio in errors.items():
        assert ratio == pytest.approx(2 / count, rel=0.02)


# The cell of a value: the two values of the grid that it lies between.


def inside_every_cell(alpha, fmt):
    """Two points inside each cell of the grid, of alternating sign, and the ends of their cells, in float64."""
    grid = magnitudes(fmt) * (np.float64(np.float32(alpha)) / fmt.max)
    share = np.array([[0.05], [0.8]])  # far from the ends, where float32 may see the next cell
    x = (grid[:-1] + share * np.diff(grid)) * (-1.0) ** np.arange(len(grid) - 1)
    return x.astype(np.float32), *(np.broadcast_to(ends, x.shape) for ends in (grid[:-1], grid[1:]))


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_the_ends_of_a_cell_are_the_neighbors_in_the_sorted_grid(fmt, alpha):
    """Every cell of the grid, against all values of the ml_dtypes type; three roundings as in law 2."""
    x, below, above = inside_every_cell(alpha, fmt)
    low, high = (np.asarray(end).astype(np.float64) for end in cell(x, np.float32(alpha), fmt))
    np.testing.assert_allclose(low, below, rtol=3 * EPS)
    np.testing.assert_allclose(high, above, rtol=3 * EPS)
    assert ((low <= np.abs(x)) & (np.abs(x) <= high)).all()


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_beyond_the_clip_both_ends_of_the_cell_are_the_clip(fmt):
    for alpha in np.float32(ALPHAS):
        for end in cell(alpha * np.float32([1.001, -3.0, np.inf]), alpha, fmt):
            np.testing.assert_array_equal(np.asarray(end), alpha)


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_a_value_on_the_grid_is_an_end_of_its_cell(fmt):
    """The lower end where scaling is exact; else the scaled value may fall short by a rounding, and it is the upper."""
    codes = np.arange(fmt.max_code + 1, dtype=np.uint8)
    for alpha in np.float32(fmt.max) * np.float32(2.0) ** np.arange(-20, 21, 8, dtype=np.float32):
        x = np.asarray(decode(codes, alpha, fmt))
        low, high = map(np.asarray, cell(-x, alpha, fmt))
        np.testing.assert_array_equal(low, x)
        np.testing.assert_array_equal(high, np.append(x[1:], alpha))
    for alpha in np.float32(ALPHAS):
        x = np.asarray(decode(codes, alpha, fmt))
        low, high = map(np.asarray, cell(x, alpha, fmt))
        np.testing.assert_array_equal((x - low) * (high - x), 0.0)
        assert ((low == x) | (high == x)).all()


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_the_cell_gives_the_variance_of_stochastic_rounding(fmt):
    """4 * 10**4 draws of each of some 30 values. (Q - x)^2 takes two values, s^2 f^2 and s^2 (1 - f)^2, and has the
    standard error s^2 |1 - 2 f| sqrt(f (1 - f) / draws); 4.5 of them are allowed, and 10**-5 s^2 for rounding."""
    count, alpha = 40_000, np.float32(0.37)
    x = inside_every_cell(alpha, fmt)[0][:, 3::8].reshape(-1)
    low, high = (np.asarray(end).astype(np.float64) for end in cell(x, alpha, fmt))
    variance = (np.abs(x) - low) * (high - np.abs(x))
    draws = np.asarray(decode(encode(np.tile(x, (count, 1)), alpha, fmt, jax.random.key(11)), alpha, fmt))
    step, fraction = high - low, (np.abs(x) - low) / (high - low)
    error = step**2 * np.abs(1 - 2 * fraction) * np.sqrt(fraction * (1 - fraction) / count)
    got = ((draws.astype(np.float64) - x) ** 2).mean(0)
    assert (np.abs(got - variance) <= 4.5 * error + 1e-5 * step**2).all()


# Edges.


@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_the_largest_code_decodes_to_alpha_exactly(fmt):
    alphas = np.exp(np.random.default_rng(6).uniform(-18, 69, 10_000)).astype(np.float32)
    top = np.full(alphas.shape, fmt.max_code, np.uint8)
    np.testing.assert_array_equal(np.asarray(decode(top, alphas, fmt)), alphas)
    np.testing.assert_array_equal(np.asarray(quantize(-2 * alphas, alphas, fmt)), -alphas)


@pytest.mark.parametrize("alpha", [MIN_ALPHA, 1e-6, 1e30, 3e38])
@pytest.mark.parametrize("fmt", FORMAT_LIST, ids=lambda f: f.name)
def test_extreme_clipping_values_neither_overflow_nor_underflow(fmt, alpha):
    got = np.asarray(decode(np.arange(fmt.max_code + 1, dtype=np.uint8), alpha, fmt)).astype(np.float64)
    np.testing.assert_allclose(got, magnitudes(fmt) * (np.float64(np.float32(alpha)) / fmt.max), rtol=3 * EPS)
    x = np.float32(alpha) * np.array([0.5, -0.25, 1.0], np.float32)
    got = np.asarray(quantize(x, alpha, fmt)).astype(np.float64)
    # Half a step of the format, relative.
    np.testing.assert_allclose(got, x, rtol=1 / (2 ** (fmt.mantissa_bits + 1) + 1))


def test_quantize_is_decode_of_encode_bit_for_bit():
    x = gaussian(5000, seed=7)
    for fmt in FORMAT_LIST:
        for alpha in ALPHAS:
            direct = np.asarray(quantize(x, alpha, fmt))
            np.testing.assert_array_equal(direct, np.asarray(decode(encode(x, alpha, fmt), alpha, fmt)))


def test_values_outside_saturate_and_nan_shows():
    x = np.array([5.0, -5.0, np.inf, -np.inf, 3e38, np.nan], np.float32)
    for fmt in FORMAT_LIST:
        for key in (None, jax.random.key(0)):
            got = np.asarray(decode(encode(x, 0.3, fmt, key), 0.3, fmt))
            np.testing.assert_array_equal(got, np.float32([0.3, -0.3, 0.3, -0.3, 0.3, np.nan]))


def test_a_clipping_value_that_is_too_small_is_floored():
    x = np.array([1e-9, 5e-8], np.float32)
    for alpha in (0.0, -1.0, 1e-12):
        np.testing.assert_array_equal(
            np.asarray(quantize(x, alpha, "e4m3fn")), np.asarray(quantize(x, MIN_ALPHA, "e4m3fn"))
        )
    assert float(scale_for(0.0, "e4m3fn")) == pytest.approx(MIN_ALPHA / 448, rel=4 * EPS)
    assert not np.asarray(quantize(np.zeros(3), 0.0, "e4m3fn")).any()


def test_the_largest_magnitude_of_empty_and_zero_tensors_is_the_floor():
    for x in (np.zeros((0, 3), np.float32), np.zeros(4, np.float32), np.float32(0)):
        assert float(max_abs(x)) == np.float32(MIN_ALPHA)
    assert float(max_abs(np.float32([[1, -3], [2, 0]]))) == 3
    assert encode(np.zeros((0, 3), np.float32), max_abs(np.zeros((0, 3))), "e4m3fn").shape == (0, 3)


@pytest.mark.parametrize("count", [10, 1_000_003])  # XLA reduces large arrays on CPU by other means than small ones
def test_the_largest_magnitude_does_not_hide_a_nan(count):
    x = gaussian(count, seed=8)
    assert float(max_abs(x)) == np.abs(x).max()
    for place in (0, 7, count - 1):
        spoiled = x.copy()
        spoiled[place] = np.nan
        assert np.isnan(float(max_abs(spoiled)))


def test_a_batch_of_clients_gives_what_each_client_gives():
    keys = jax.random.split(jax.random.key(1), 3)
    x, alphas = gaussian((3, 200), seed=9), np.float32([0.5, 1.0, 2.0])
    batched = np.asarray(jax.vmap(lambda k, x, a: encode(x, a, "e4m3fn", k))(keys, x, alphas)).view(np.uint8)
    for i in range(3):
        alone = np.asarray(encode(x[i], alphas[i], "e4m3fn", keys[i])).view(np.uint8)
        np.testing.assert_array_equal(alone, batched[i])


def test_codes_of_another_type_are_refused():
    with pytest.raises(UserError, match="float8_e5m2 where e4m3fn asks for float8_e4m3fn or uint8"):
        decode(encode(np.ones(2), 1.0, "e5m2"), 1.0, "e4m3fn")
