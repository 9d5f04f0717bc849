"""Never synchronize: H = -inf, nothing is sent. Workers train alone, as with Theta = inf."""

import math

from fedjax8.algorithms.monitors._direction import constant
from fedjax8.algorithms.monitors.base import Monitor


def never() -> Monitor:
    """The monitor that never asks for a synchronization."""
    return Monitor(constant(-math.inf))


EXAMPLES = ({},)
