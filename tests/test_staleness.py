"""Staleness weights against their formulas, on numbers and on arrays of both libraries."""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.staleness import constant, hinge, polynomial

AGES = np.arange(8.0)


def by_hand(age):
    return {
        "constant": 1.0,
        "polynomial": 1.0 / (1.0 + age) ** 0.6,
        "hinge": 1.0 if age <= 4 else 1.0 / (10.0 * (age - 4) + 1.0),
    }


WEIGHTS = {"constant": constant(), "polynomial": polynomial(0.6), "hinge": hinge(10.0, 4.0)}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_the_formula(name):
    expected = [by_hand(age)[name] for age in AGES]
    np.testing.assert_allclose(WEIGHTS[name](AGES), expected, rtol=1e-12)
    np.testing.assert_allclose(WEIGHTS[name](jnp.asarray(AGES)), expected, rtol=1e-6)
    assert [WEIGHTS[name](int(age)) for age in AGES] == pytest.approx(expected)
    assert WEIGHTS[name](0) == 1.0


@pytest.mark.parametrize("make", [lambda: polynomial(-1.0), lambda: hinge(-1.0), lambda: hinge(1.0, -2.0)])
def test_negative_settings_are_refused(make):
    with pytest.raises(ValueError, match="must not be negative"):
        make()
