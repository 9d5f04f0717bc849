"""What counts as an argument of an annotated type, and what is said of one that does not."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.given import checked, fits


class Thing(NamedTuple):
    """A tuple of functions, as models and codecs are."""

    run: Callable[[int], int]


@checked
def make(thing: Thing, rate: float = 0.1, *, names: Sequence[str] = (), size: int | None = None, other: Any = None):
    return thing, rate, names, size, other


def test_arguments_that_fit_are_handed_on_and_the_name_stays():
    thing = Thing(abs)
    assert make(thing, 1, names=["a"], size=np.int64(3), other=make) == (thing, 1, ["a"], 3, make)
    assert make(thing, np.float32(0.5))[1] == 0.5
    assert make.__name__ == "make"


@pytest.mark.parametrize(
    ("args", "settings", "says"),
    [
        ((Thing,), {}, r"make: thing must be a Thing, but is the class Thing; call it: Thing\(...\)"),
        ((abs,), {}, r"is the function abs; call it: abs\(...\)"),
        ((Thing(abs), "0.1"), {}, "make: rate must be a float, but is '0.1'"),
        ((Thing(abs),), {"names": "ab"}, r"names must be Sequence\[str\], but is 'ab'"),
        ((Thing(abs),), {"size": 3.0}, "size must be an int or None, but is 3.0; try 3"),
        ((Thing(abs),), {"rte": 0.1}, "unexpected keyword argument 'rte'; it takes thing, rate, names, size, other"),
        ((), {}, "make: missing a required argument: 'thing'"),
    ],
)
def test_what_does_not_fit_is_named_with_what_to_try(args, settings, says):
    with pytest.raises(UserError, match=says):
        make(*args, **settings)


@pytest.mark.parametrize(
    ("value", "hint", "fitting"),
    [
        (np.ones(3), Sequence[float] | float, True),
        (np.float64(1), float, True),
        (np.ones(()), float, True),
        (np.ones(3), float, False),
        (True, int, False),
        (True, float, False),
        (np.ones(3), int, False),
        ((1, 2), tuple[int, ...], True),
        ((1, "2"), tuple[int, int], False),
        (print, Callable, True),
        (3, Callable[[int], int], False),
    ],
)
def test_kinds_of_values_are_told_apart(value, hint, fitting):
    assert fits(value, hint, objects=True) is fitting
