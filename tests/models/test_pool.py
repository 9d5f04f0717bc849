"""Pooling against flax's, on small integers with many equal values: values and gradients must be equal."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax8.models.pool import avg_pool, max_pool

pytestmark = pytest.mark.usefixtures("compiled_quickly")
# shape, window, strides, padding
CASES = {
    "2x2": ((2, 6, 4, 3), (2, 2), (2, 2), "VALID"),
    "a rest is dropped": ((2, 7, 5, 3), (2, 2), (2, 2), "VALID"),
    "3x2": ((2, 6, 5, 3), (3, 2), (3, 2), "VALID"),
    "same, divides": ((2, 6, 4, 3), (2, 2), (2, 2), "SAME"),
    "same, pads": ((2, 5, 5, 3), (2, 2), (2, 2), "SAME"),
    "overlapping": ((2, 6, 6, 3), (3, 3), (2, 2), "VALID"),
    "explicit padding": ((2, 6, 6, 3), (2, 2), (2, 2), ((0, 2), (1, 1))),
    "several batch axes": ((2, 2, 4, 4, 3), (2, 2), (2, 2), "VALID"),
}
POOLS = {"max": (max_pool, nn.max_pool), "avg": (avg_pool, nn.avg_pool)}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("kind", POOLS)
def test_values_and_gradients_are_those_of_flax_also_among_equal_values(kind, case, rng):
    shape, *settings = case
    x = np.maximum(rng.integers(-1, 2, shape), 0).astype(
        np.float32
    )  # two of three values are 0: most windows have several largest values

    @jax.jit
    def run(x):
        def with_gradient(pool):
            y, pull = jax.vjp(lambda x: pool(x, *settings), x)
            return y, pull(jnp.arange(1.0, 1 + y.size).reshape(y.shape))[0]

        return [with_gradient(pool) for pool in POOLS[kind]]

    ours, theirs = run(x)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])


def test_only_the_first_of_equal_values_gets_the_gradient():
    x = jnp.asarray([[1.0, 3.0, 0.0, 0.0], [3.0, 3.0, 0.0, 0.0]]).reshape(1, 2, 4, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, 2) * jnp.asarray([5.0, 7.0]).reshape(1, 1, 2, 1)))(x)
    assert gradient.reshape(2, 4).tolist() == [[0, 5, 7, 0], [0, 0, 0, 0]]


def test_pooling_maps_over_clients(rng):
    x = rng.integers(0, 3, (3, 2, 4, 4, 2)).astype(np.float32)

    def gradient(x):
        return jax.grad(lambda x: jnp.sum(max_pool(x, 2) ** 2))(x)

    alone = jax.jit(gradient)
    np.testing.assert_array_equal(jax.jit(jax.vmap(gradient))(x), np.stack([alone(v) for v in x]))


def test_windows_may_be_numbers_and_do_not_overlap_unless_told(rng):
    x = rng.standard_normal((1, 6, 6, 2)).astype(np.float32)
    np.testing.assert_array_equal(max_pool(x, 3), max_pool(x, (3, 3), (3, 3)))
    assert max_pool(x, 3).shape == (1, 2, 2, 2)
    assert max_pool(x, 3, 1).shape == (1, 4, 4, 2)


@pytest.mark.parametrize("position", range(4))
def test_not_a_number_is_passed_on(position):
    x = np.ones((1, 2, 2, 1), np.float32)
    x.reshape(-1)[position] = np.nan
    assert np.isnan(max_pool(x, 2)).all()


def test_a_window_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        max_pool(np.ones((1, 2, 2, 1), np.float32), (2, 0))
