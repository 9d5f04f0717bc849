"""Checks of the settings of system models, and the seconds of a local step."""

import math
from collections.abc import Callable

from fedjax8.errors import UserError

LARGEST_SPREAD = 4.0
"""Twice this, times the largest normal number that is drawn, 8.6, is the logarithm of a number within float32."""


def check_above(**values: float) -> None:
    """Raises ValueError for a value that is not a finite number above 0."""
    for name, value in values.items():
        if not (0 < value < math.inf):
            raise ValueError(f"{name} must be a number above 0; got {value}")


def check_from_zero(**values: float) -> None:
    """Raises ValueError for a value that is not a finite number from 0 up."""
    for name, value in values.items():
        if not (0 <= value < math.inf):
            raise ValueError(f"{name} must be a number from 0 up; got {value}")


def check_spread(**values: float) -> None:
    """Raises ValueError for the deviation of a logarithm that is not from 0 to `LARGEST_SPREAD`."""
    for name, value in values.items():
        if not (0 <= value <= LARGEST_SPREAD):
            raise ValueError(f"{name} must be from 0 to {LARGEST_SPREAD:g}; got {value}")


def check_seed(seed: int) -> None:
    """Raises ValueError for a seed that is not from 0 to 2**64 - 1."""
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1; got {seed}")


def seconds_of_step(
    step_seconds: float | None, flops: float | None, operations: Callable[[], float] | None, default: float = 0.1
) -> float:
    """Seconds of a local step: as given, or the operations of a step over a device's rate.

    Args:
      step_seconds: seconds, or None.
      flops: floating-point operations a second of a device, or None. A multiply-add is two.
      operations: gives the operations of one local step of the run; supplied by the program.
      default: the seconds where neither is given.

    Raises:
      UserError: both are given, or `flops` where nothing counts the operations.
      ValueError: a value out of range.
    """
    if step_seconds is not None and flops is not None:
        raise UserError(
            f"step_seconds={step_seconds} and flops={flops} both say how long a local step takes; leave one out"
        )
    if flops is None:
        seconds = default if step_seconds is None else step_seconds
        check_from_zero(step_seconds=seconds)
        return seconds
    check_above(flops=flops)
    if operations is None:
        raise UserError("flops needs the operations of a local step: pass operations=lambda: N, or give step_seconds")
    return operations() / flops
