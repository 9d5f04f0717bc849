"""Weights of late updates by their age, the server steps since the model that they started from; 0 is on time.

    constant()        1
    polynomial(a)     (1 + age)^-a              Xie et al. 2019 (FedAsync, arXiv 1903.03934, section 5.2); with a = 1/2
                                                that of FedBuff (Nguyen et al., arXiv 2106.06639)
    hinge(a, b)       1 / (a (age - b) + 1)     for ages above b, else 1: FedAsync, the same section

Formulas and defaults are recalled and were not read again. PR-FL's code (arXiv 2403.15439) has age^-a with a = 0.6,
where the age of an update on time is 1: `polynomial(0.6)`; and 1 / (a (age - 2) + 1): `hinge(a, 2)`. Ages are numbers
or arrays, of NumPy or JAX.
"""

from collections.abc import Callable
from typing import Any

from fedjax8.given import checked

Staleness = Callable[[Any], Any]
"""Age to weight."""


@checked
def constant() -> Staleness:
    """Every age weighs 1."""
    return lambda age: 1.0 + 0.0 * age


@checked
def polynomial(exponent: float = 0.5) -> Staleness:
    """(1 + age)^-exponent."""
    if not exponent >= 0:
        raise ValueError(f"exponent must not be negative; got {exponent}")
    return lambda age: (1.0 + age) ** -exponent


@checked
def hinge(slope: float = 10.0, start: float = 4.0) -> Staleness:
    """1 up to the age `start`, then 1 / (slope (age - start) + 1); the defaults are those of FedAsync's experiments."""
    if not (slope >= 0 and start >= 0):
        raise ValueError(f"slope and start must not be negative; got {slope} and {start}")

    def weight(age: Any) -> Any:
        over = (age - start + abs(age - start)) / 2  # the part above 0, of a number or an array of any library
        return 1.0 / (slope * over + 1.0)

    return weight
