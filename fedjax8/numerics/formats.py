"""The small floating-point grids that weights, gradients and messages are rounded to.

A format with E exponent bits, M mantissa bits and bias b holds, for a code with exponent field e and mantissa field f,

    e = 0:  f * 2**(1 - b - M)              (zero and the subnormal numbers, one fixed step)
    e > 0:  (1 + f / 2**M) * 2**(e - b)     (the normal numbers, eight steps a binade when M = 3)

plus a sign bit on top. Non-negative codes, read as integers, are in the order of their values: code k + 1 is the
next larger number after code k. Every function of this package leans on that.

| name      | largest | smallest normal | smallest positive | no value on the grid            |
| --------- | ------- | --------------- | ----------------- | ------------------------------- |
| e4m3fn    | 448     | 2**-6           | 2**-9             | two NaNs (0x7f, 0xff)           |
| e4m3fnuz  | 240     | 2**-7           | 2**-10            | one NaN (0x80), no negative zero|
| e5m2      | 57344   | 2**-14          | 2**-16            | infinities and six NaNs         |
| e3m2      | 28      | 2**-2           | 2**-4             | none (6 bits)                   |
| e2m3      | 7.5     | 1               | 2**-3             | none (6 bits)                   |
| e2m1      | 6       | 1               | 2**-1             | none (4 bits)                   |

Reference: Micikevicius et al., "FP8 Formats for Deep Learning" (arXiv 2209.05433) for e4m3fn and e5m2; Noune et al.,
"8-bit Numerical Formats for Deep Neural Networks" (arXiv 2206.02915) for the fnuz variants; the Open Compute Project's
"Microscaling Formats (MX) Specification" v1.0 for the narrow ones, where NaN cannot be written: it becomes zero.
"""

import contextlib
import contextvars
import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from fedjax8.errors import UserError


class Format(NamedTuple):
    """One grid. Hashable, so it can be a static argument of jitted functions.

    Invariants: `max`, `smallest_normal` and `smallest_subnormal` are exact float32 numbers; codes 0..max_code are
    finite and strictly increasing in value; the sign bit is bit `bits - 1` of a code.
    """

    name: str  # the short name that configurations use
    dtype: np.dtype  # the ml_dtypes storage type
    exponent_bits: int
    mantissa_bits: int
    bias: int  # a normal number is 2**(exponent field - bias) * (1 + fraction)
    max: float  # largest finite value
    smallest_normal: float
    smallest_subnormal: float  # also the step of the whole subnormal range
    has_inf: bool
    max_code: int  # the code of `max`
    nan_code: int | None  # the code written for NaN; None when the format has none
    has_negative_zero: bool  # False for the fnuz types, where the pattern of -0 means NaN

    @property
    def bits(self) -> int:
        """Width of a code, sign included."""
        return 1 + self.exponent_bits + self.mantissa_bits


def format_from_dtype(dtype: Any, name: str | None = None) -> Format:
    """The `Format` of an ml_dtypes float of at most 8 bits, every field read off the type itself.

    Args:
      dtype: an ml_dtypes scalar type or NumPy dtype, such as `ml_dtypes.float6_e2m3fn`.
      name: short name; by default the type's own name after the underscore ("float6_e2m3fn" gives "e2m3fn").

    Raises:
      UserError: when the type is wider than 8 bits, or has no sign bit or no subnormal numbers.

    Example:
      >>> format_from_dtype(ml_dtypes.float4_e2m1fn).max
      6.0
    """
    dtype = np.dtype(dtype)
    info = ml_dtypes.finfo(dtype)
    has_subnormals = float(info.smallest_subnormal) < float(info.smallest_normal)
    if info.bits > 8 or 1 + info.nexp + info.nmant != info.bits or not has_subnormals:
        raise UserError(f"{dtype.name} is not a signed float of at most 8 bits with subnormal numbers")
    half = 1 << (info.bits - 1)
    values = np.arange(2 * half, dtype=np.uint8).view(dtype).astype(np.float32)
    finite = np.flatnonzero(np.isfinite(values[:half]))
    with np.errstate(invalid="ignore"):
        nan_code = int(np.float32(np.nan).astype(dtype).view(np.uint8)) if np.isnan(values).any() else None
    return Format(
        name=name or dtype.name.split("_", 1)[1],
        dtype=dtype,
        exponent_bits=int(info.nexp),
        mantissa_bits=int(info.nmant),
        bias=1 - int(info.minexp),
        max=float(info.max),
        smallest_normal=float(info.smallest_normal),
        smallest_subnormal=float(info.smallest_subnormal),
        has_inf=bool(np.isinf(values).any()),
        max_code=int(finite[-1]),
        nan_code=nan_code,
        has_negative_zero=bool(values[half] == 0),
    )


# A further ml_dtypes float of at most 8 bits is one more entry in one of these.
_DTYPES = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2)
_NARROW_DTYPES = {"e2m1": ml_dtypes.float4_e2m1fn, "e2m3": ml_dtypes.float6_e2m3fn, "e3m2": ml_dtypes.float6_e3m2fn}

FORMATS: dict[str, Format] = {fmt.name: fmt for fmt in map(format_from_dtype, _DTYPES)}
"""The formats of 8 bits, whose arrays are counted as they are."""

NARROW_FORMATS: dict[str, Format] = {name: format_from_dtype(dtype, name) for name, dtype in _NARROW_DTYPES.items()}
"""Those of 4 and 6 bits, whose codes (uint8) are to be packed before they are counted: `pack_bits(codes, fmt.bits)`."""


DEFAULT = "e4m3fn"
"""Default format of weights, layer inputs and messages."""
GRADIENTS = "e5m2"
"""Default format of gradients."""


def get_format(fmt: str | Format, known: Mapping[str, Format] = FORMATS) -> Format:
    """The `Format` of that name among the known ones; a `Format` is handed back as it is.

    Raises:
      UserError: for an unknown name, with the nearest known one.

    Example:
      >>> get_format("e4m3fn").max
      448.0
      >>> get_format("e2m1", NARROW_FORMATS).max
      6.0
    """
    if isinstance(fmt, Format):
        return fmt
    if fmt in known:
        return known[fmt]
    close = difflib.get_close_matches(str(fmt), known, n=1, cutoff=0.0)
    raise UserError(f"unknown number format {fmt!r}; known are {', '.join(known)}; did you mean {close[0]!r}?")


class Use(NamedTuple):
    """A part of the run and the grid that it rounds by, while a round is traced."""

    user: str
    grid: str
    """A format's name, with its rules if it has some."""


class _Uses(NamedTuple):
    of: list[Use]
    patterns: dict[str, bool]
    """Patterns of rules, and whether each matched a layer of some user."""
    layers: dict[str, None]
    """Paths that they may match, in order."""


_uses: contextvars.ContextVar[_Uses | None] = contextvars.ContextVar("uses", default=None)


@contextlib.contextmanager
def one_format(mixed: bool = False) -> Iterator[None]:
    """Raises UserError at its end if parts traced inside rounded by several formats or rules, or if a pattern of the
    rules matches no layer.

    `mixed` allows the former.
    """
    uses = _Uses([], {}, {})
    token = _uses.set(uses)
    try:
        yield
    finally:
        _uses.reset(token)
    if len({use.grid for use in uses.of}) > 1 and not mixed:
        given = ", ".join(f"{use.user} {use.grid}" for use in uses.of)
        raise UserError(
            f"8-bit formats are mixed: {given}; values on the grid of one move when they are rounded to another's; "
            "give all the same format and rules, or ask for a mix by simulate(..., mixed_formats=True)"
        )
    for pattern in (pattern for pattern, matched in uses.patterns.items() if not matched):
        raise UserError(f"rules: pattern {pattern!r} matches none of {', '.join(uses.layers) or 'no layers'}")


def record_use(user: str, grid: str, patterns: Mapping[str, bool] | None = None, layers: Iterable[str] = ()) -> None:
    """Records a use of the grid that a run's parts share, where one is traced, so that a mix is noticed.

    Args:
      grid: the format's name, with its rules if it has some.
      patterns: those of its rules, and whether each matches one of `layers`.
    """
    uses = _uses.get()
    if uses is None:
        return
    if Use(user, grid) not in uses.of:
        uses.of.append(Use(user, grid))
    for pattern, matched in (patterns or {}).items():
        uses.patterns[pattern] = uses.patterns.get(pattern, False) or matched
    uses.layers.update(dict.fromkeys(layers))
