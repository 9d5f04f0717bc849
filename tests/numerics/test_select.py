"""Selection of the largest scores against NumPy's sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.numerics.select import largest


def oracle(scores, count):
    """A stable sort by falling score keeps equal ones in order."""
    return np.sort(np.argsort(-scores.astype(np.int64), kind="stable")[:count])


@pytest.mark.parametrize("count", [1, 40, 999, 1000])
def test_the_largest_scores_come_in_order_of_position_and_of_equal_ones_the_first(count):
    rng = np.random.default_rng(count)
    for scores in (rng.integers(0, 2**31, 1000), rng.integers(0, 5, 1000), np.full(1000, 2**31 - 1), np.zeros(1000)):
        scores = scores.astype(np.int32)
        np.testing.assert_array_equal(largest(jnp.asarray(scores), count), oracle(scores, count))


def test_rows_of_a_batch_are_selected_alike():
    scores = np.random.default_rng(0).integers(0, 9, (3, 70)).astype(np.int32)
    got = jax.vmap(lambda s: largest(s, 7))(scores)
    np.testing.assert_array_equal(got, [oracle(row, 7) for row in scores])


def test_more_than_there_is_and_nothing_are_refused():
    for count in (0, 4):
        with pytest.raises(ValueError, match=f"count={count} of 3 scores is out of range"):
            largest(jnp.zeros(3, jnp.int32), count)
