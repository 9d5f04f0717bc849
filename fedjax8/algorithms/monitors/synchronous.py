"""Synchronize after every step: H = +inf, and nothing is sent. The case Theta = 0 of FDA (arXiv 2405.20988)."""

import math

from fedjax8.algorithms.monitors._direction import constant
from fedjax8.algorithms.monitors.base import Monitor


def synchronous() -> Monitor:
    """The monitor that always says yes."""
    return Monitor(constant(math.inf), compat_start=False)


EXAMPLES = ({},)
