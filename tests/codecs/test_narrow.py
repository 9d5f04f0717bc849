"""`block_fp8` and `narrow`: 8-, 6- and 4-bit floats in scaled blocks, against ml_dtypes in NumPy."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from fedjax8 import trees
from fedjax8.codecs.block_fp8 import block_fp8
from fedjax8.codecs.narrow import narrow
from fedjax8.errors import UserError
from fedjax8.numerics import FORMATS, NARROW_FORMATS, cast, round_to_grid, to_float32, unpack_bits

KEY = jax.random.key(0)
DTYPES = {
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e3m2": ml_dtypes.float6_e3m2fn,
}


def codec_of(format, *args, **settings):
    return (narrow if format in NARROW_FORMATS else block_fp8)(format, *args, **settings)


def blocks_of_all_sizes(seed=0):
    """`[8, 32]`: blocks of sizes from 1e-30 to 1e30, one of zeros, one whose top has a large mantissa."""
    sizes = 10.0 ** np.array([-30, -9, -2, 0, 0, 3, 12, 30])
    x = np.random.default_rng(seed).standard_normal((8, 32)) * sizes[:, None]
    x[3] = 0
    x[4, 0] = 3.999
    return x.astype(np.float32)


def encode(codec, x, key=KEY):
    return codec.encode(key, (), jnp.asarray(x))[0]


def send(codec, x, key=KEY):
    return np.asarray(codec.decode((), encode(codec, x, key)))


def by_hand(x, format, scale):
    """Values of the blocks (rows) rounded to nearest, in float64."""
    dtype = DTYPES[format]
    largest = float(ml_dtypes.finfo(dtype).max)
    out = np.zeros(x.shape)
    for row, to in zip(x.astype(np.float64), out, strict=True):
        top = np.abs(row).max()
        if top == 0:
            continue
        if scale == "ocp":
            unit = 2.0 ** (np.floor(np.log2(top)) - np.floor(np.log2(largest)))
        else:
            unit = 2.0 ** np.ceil(np.log2(top / largest))
        to[:] = np.clip(row / unit, -largest, largest).astype(np.float32).astype(dtype).astype(np.float64) * unit
    return out


@pytest.mark.parametrize("scale", ["power_of_two", "ocp"])
@pytest.mark.parametrize("format", DTYPES)
def test_a_block_is_rounded_as_ml_dtypes_rounds_it_at_a_power_of_two(format, scale):
    x = blocks_of_all_sizes()
    np.testing.assert_array_equal(send(codec_of(format, "nearest", scale=scale), x), by_hand(x, format, scale))


@pytest.mark.parametrize("format", DTYPES)
def test_nothing_is_clipped_but_by_the_rule_of_the_specification(format):
    """3.999 is 1.9995 * 2: above the largest mantissa of every format here."""
    x = blocks_of_all_sizes()
    ocp, ours = (send(codec_of(format, "nearest", scale=s), x)[4, 0] for s in ("ocp", "power_of_two"))
    largest = float(ml_dtypes.finfo(DTYPES[format]).max)
    assert ocp == largest * 2.0 ** (1 - np.floor(np.log2(largest)))
    assert ours == 4.0


@pytest.mark.parametrize("format", ["e4m3fn", "e2m1"])
def test_with_float32_scales_the_largest_value_of_a_block_is_kept(format):
    x = blocks_of_all_sizes()[2:]  # numerics.scales floors a scale at 1e-8
    got = send(codec_of(format, scale="float32"), x)
    np.testing.assert_allclose(np.abs(got).max(axis=1), np.abs(x).max(axis=1), rtol=1e-6)


@pytest.mark.parametrize("format", ["e4m3fn", "e2m1", "e3m2"])
def test_stochastic_rounding_takes_the_two_neighbors_without_bias(format):
    x = blocks_of_all_sizes(1)[2:3]
    codec, count = codec_of(format), 2000
    keys = jax.random.split(KEY, count)
    got = np.asarray(jax.jit(jax.vmap(lambda k: codec.decode((), encode(codec, x, k))))(keys), np.float64)
    assert max(len(np.unique(got[:, 0, i])) for i in range(32)) == 2
    error = got.std(axis=0) / np.sqrt(count)
    assert np.all(np.abs(got.mean(axis=0) - x) <= 5 * error + 2.0**-18 * np.abs(x))


@pytest.mark.parametrize(
    "codec, want",
    [
        (block_fp8(), 100 + 4),
        (block_fp8(scale="float32", block=50), 100 + 4 * 2),
        (block_fp8(block=None), 100 + 1),
        (narrow(), 50 + 4),
        (narrow("e2m3"), 75 + 4),
        (narrow("e3m2", scale="float32", block=16), 75 + 4 * 7),
    ],
)
def test_a_leaf_costs_its_packed_codes_and_a_scale_for_every_block(codec, want):
    message = encode(codec, np.ones((10, 10), np.float32))
    assert trees.num_bytes(message) == want
    np.testing.assert_array_equal(np.asarray(codec.decode((), message)), np.ones((10, 10)))


def test_messages_are_in_native_types():
    message = encode(block_fp8("e5m2"), np.ones((10, 10), np.float32))
    assert message.codes.dtype == ml_dtypes.float8_e5m2
    assert message.scales.dtype == ml_dtypes.float8_e8m0fnu
    # 1 / 57344 = 2**-15.8: the scale is 2**-15
    np.testing.assert_array_equal(np.asarray(message.scales, np.float32), np.full(4, 2.0**-15, np.float32))


def test_a_four_bit_message_holds_the_codes_of_ml_dtypes():
    values = np.float32([[0, 0.5, 1, 1.5, 2, 3, 4, 6], [-0.0, -0.5, -1, -1.5, -2, -3, -4, -6]])
    message = encode(narrow("e2m1", block=8), values)
    want = values.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).ravel()
    np.testing.assert_array_equal(unpack_bits(message.codes, 4, 16), want)


@pytest.mark.parametrize("format", DTYPES)
def test_a_value_that_is_not_finite_spoils_its_block_and_no_other(format):
    for bad in (np.nan, np.inf):
        x = np.ones((2, 32), np.float32)
        x[0, 3] = bad
        got = send(codec_of(format), x)
        assert not np.isfinite(got[0]).any()
        np.testing.assert_array_equal(got[1], 1)


@pytest.mark.parametrize("fmt", NARROW_FORMATS.values(), ids=lambda f: f.name)
def test_narrow_casts_have_the_bits_of_ml_dtypes_on_every_code_tie_and_at_random(fmt):
    grid = np.arange(1 << fmt.bits, dtype=np.uint8).view(fmt.dtype).astype(np.float32)
    positive = np.sort(np.abs(grid))
    ties = (positive[1:] + positive[:-1]) / 2
    around = np.concatenate([ties, np.nextafter(ties, np.float32(0)), np.nextafter(ties, np.float32(99))])
    random = np.random.default_rng(0).integers(0, 2**32, 50_000, dtype=np.uint32).view(np.float32)
    random = random[~np.isnan(random)]
    x = np.concatenate([grid, around, -around, random, fmt.max * np.random.default_rng(1).uniform(-1, 1, 5000)])
    x = x.astype(np.float32)
    want = np.clip(x, np.float32(-fmt.max), np.float32(fmt.max)).astype(fmt.dtype)
    codes = np.asarray(cast(x, fmt))
    np.testing.assert_array_equal(codes, want.view(np.uint8))
    np.testing.assert_array_equal(np.asarray(round_to_grid(x, fmt)), want.astype(np.float32))
    every = np.arange(1 << fmt.bits, dtype=np.uint8)
    np.testing.assert_array_equal(np.asarray(to_float32(every, fmt)), every.view(fmt.dtype).astype(np.float32))


def test_the_narrow_formats_are_those_of_the_specification():
    """OCP MX v1.0, tables 2 to 4: bits, largest, smallest normal, smallest subnormal; none has infinities or NaN."""
    got = {
        f.name: (f.bits, f.max, f.smallest_normal, f.smallest_subnormal, f.has_inf, f.nan_code)
        for f in NARROW_FORMATS.values()
    }
    assert got == {
        "e2m1": (4, 6.0, 1.0, 0.5, False, None),
        "e2m3": (6, 7.5, 1.0, 0.125, False, None),
        "e3m2": (6, 28.0, 0.25, 0.0625, False, None),
    }
    assert not set(NARROW_FORMATS) & set(FORMATS)


def test_bad_settings_are_named():
    with pytest.raises(UserError, match="unknown number format 'e4m3fn'; known are e2m1, e2m3, e3m2"):
        narrow("e4m3fn")
    with pytest.raises(UserError, match="unknown number format 'e2m1'; known are e4m3fn, e4m3fnuz, e5m2"):
        block_fp8("e2m1")
    for settings, word in (
        ({"rounding": "up"}, "rounding must be one of stochastic, nearest; got 'up'"),
        ({"scale": "e8m0"}, "scale must be one of power_of_two, ocp, float32; got 'e8m0'"),
        ({"block": 0}, "block must be at least 1; got 0"),
    ):
        with pytest.raises(ValueError, match=word):
            block_fp8(**settings)
