"""Number formats: constants of the grids, and what a further row needs."""

import ml_dtypes
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.numerics import FORMATS, format_from_dtype, get_format

OTHERS = (
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e4m3b11fnuz,
    ml_dtypes.float8_e3m4,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.float4_e2m1fn,
)


@pytest.mark.parametrize(
    "name, exponent_bits, mantissa_bits, bias, largest, smallest_normal, smallest, has_inf, negative_zero",
    [
        # From table 1 of arXiv 2209.05433 and the definition of the fnuz variants in arXiv 2206.02915.
        ("e4m3fn", 4, 3, 7, 448.0, 2.0**-6, 2.0**-9, False, True),
        ("e4m3fnuz", 4, 3, 8, 240.0, 2.0**-7, 2.0**-10, False, False),
        ("e5m2", 5, 2, 15, 57344.0, 2.0**-14, 2.0**-16, True, True),
    ],
)
def test_the_constants_of_a_format_are_those_published(
    name, exponent_bits, mantissa_bits, bias, largest, smallest_normal, smallest, has_inf, negative_zero
):
    fmt = get_format(name)
    assert (fmt.exponent_bits, fmt.mantissa_bits, fmt.bias, fmt.bits) == (
        exponent_bits,
        mantissa_bits,
        bias,
        8,
    )
    assert (fmt.max, fmt.smallest_normal, fmt.smallest_subnormal) == (largest, smallest_normal, smallest)
    assert (fmt.has_inf, fmt.has_negative_zero) == (has_inf, negative_zero)


@pytest.mark.parametrize("fmt", [*FORMATS.values(), *map(format_from_dtype, OTHERS)], ids=lambda f: f.name)
def test_a_format_describes_every_code_of_its_type(fmt):
    codes = np.arange(1 << fmt.bits, dtype=np.uint8)
    values = codes.view(fmt.dtype).astype(np.float64)
    for k in range(fmt.max_code + 1):
        field, fraction = k >> fmt.mantissa_bits, k % (1 << fmt.mantissa_bits)
        if field == 0:
            value = fraction * fmt.smallest_subnormal
        else:
            value = (1 + fraction / 2**fmt.mantissa_bits) * 2.0 ** (field - fmt.bias)
        assert values[k] == value
    assert values[fmt.max_code] == fmt.max == np.nanmax(np.where(np.isinf(values), np.nan, values))
    assert fmt.has_inf == np.isinf(values).any()
    if fmt.nan_code is None:
        assert not np.isnan(values).any()
    else:
        assert np.isnan(values[fmt.nan_code])


def test_a_format_can_be_looked_up_by_name_and_passes_through():
    fmt = get_format("e5m2")
    assert get_format(fmt) is fmt
    assert hash(fmt) == hash(FORMATS["e5m2"])


def test_an_unknown_format_name_suggests_the_nearest():
    with pytest.raises(UserError, match=r"'e4m3'.*did you mean 'e4m3fn'"):
        get_format("e4m3")


def test_types_that_are_no_small_signed_float_are_refused():
    for dtype in (ml_dtypes.bfloat16, np.float32, ml_dtypes.float8_e8m0fnu):
        with pytest.raises(UserError, match="not a signed float"):
            format_from_dtype(dtype)
