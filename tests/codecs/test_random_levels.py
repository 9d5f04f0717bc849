"""Rounding at random to whole levels at the ends of what can be drawn."""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.codecs import _leaves


def test_a_whole_level_stays_for_the_smallest_draw_and_a_fraction_goes_up_below_it(monkeypatch):
    """u = 0, which one key in 2^24 gives: a level must not move, and every fraction above 0 goes up."""
    t = jnp.float32([-2.0, 0.0, 3.0, 0.25, -0.75])
    draw = lambda u: lambda key, shape: jnp.full(shape, u, jnp.float32)
    for u, expected in ((0.0, [-2, 0, 3, 1, 0]), (0.25, [-2, 0, 3, 0, -1]), (0.2, [-2, 0, 3, 1, 0])):
        monkeypatch.setattr(_leaves, "uniform", draw(u))
        np.testing.assert_array_equal(_leaves.round_at_random(jax.random.key(0), t), expected)
