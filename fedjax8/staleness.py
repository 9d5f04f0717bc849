"""Factors on updates by their age: the number of server steps since the client received its model.

    constant     1
    polynomial   (1 + age)^-exponent
    hinge        1 if age <= threshold, else 1 / (exponent (age - threshold) + 1)

All three are those of Xie et al. 2019 (arXiv 1903.03934, section 5.2). Nguyen et al. 2022 (arXiv 2106.06639) use the
polynomial with exponent 0.5. Both as recalled, not read again.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

NAMES = ("constant", "polynomial", "hinge")


def constant(ages: np.ndarray) -> np.ndarray:
    """float64 ones `[n]`: an old update counts as a new one."""
    return np.ones(np.shape(ages))


def polynomial(ages: np.ndarray, exponent: float) -> np.ndarray:
    """float64 `[n]`: (1 + age)^-exponent."""
    return np.asarray((1.0 + np.asarray(ages, float)) ** -exponent)


def hinge(ages: np.ndarray, exponent: float, threshold: float) -> np.ndarray:
    """float64 `[n]`: 1 up to the threshold, then 1 / (exponent (age - threshold) + 1)."""
    beyond = np.maximum(np.asarray(ages, float) - threshold, 0.0)
    return np.asarray(1.0 / (exponent * beyond + 1.0))


def factor(name: str, exponent: float, threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """The function of ages with this name and these settings, those that it takes.

    Raises:
      ValueError: an unknown name, or a setting that is negative or not finite.
    """
    if name not in NAMES:
        raise ValueError(f"staleness must be one of {', '.join(NAMES)}; got {name!r}")
    for setting, value in (("exponent", exponent), ("threshold", threshold)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{setting} must be a number from 0 up; got {value}")
    if name == "constant":
        return constant
    if name == "polynomial":
        return functools.partial(polynomial, exponent=exponent)
    return functools.partial(hinge, exponent=exponent, threshold=threshold)
