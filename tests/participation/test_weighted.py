"""Draws by weight: one after another among those that are left."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.errors import UserError
from fedjax8.participation import Ask, weighted

DRAWS = 4000


def pairs_drawn(drawn_by, sizes, losses=None):
    """How often each pair of clients came, in DRAWS rounds of two."""
    sizes = np.asarray(sizes)
    ask = Ask(0, 0, len(sizes), 2, lambda ids: sizes[ids], lambda sizes: sizes, losses)
    seen = [tuple(drawn_by.draw(ask._replace(round=r)).ids.tolist()) for r in range(DRAWS)]
    return [seen.count(pair) for pair in itertools.combinations(range(len(sizes)), 2)]


def successive(weights):
    """Chances of the pairs: first one by its share, then the other by its share of the rest."""
    p = np.asarray(weights, float) / np.sum(weights)
    return np.array(
        [p[i] * p[j] / (1 - p[i]) + p[j] * p[i] / (1 - p[j]) for i, j in itertools.combinations(range(len(p)), 2)]
    )


@pytest.mark.parametrize(
    ("given", "sizes"), [(None, [1, 2, 3, 4]), (None, [5, 5, 5, 5]), ((0.1, 0.2, 0.3, 5.0), [9, 1, 1, 1])]
)
def test_pairs_come_as_often_as_successive_sampling_says(given, sizes):
    counts = pairs_drawn(weighted(given), sizes)
    expected = DRAWS * successive(sizes if given is None else given)
    assert stats.chisquare(counts, expected).pvalue > 1e-4


def test_clients_without_rows_are_never_drawn_and_too_few_others_are_named():
    counts = pairs_drawn(weighted(), [3, 0, 2, 1])
    assert [counts[i] for i in (0, 3, 4)] == [0, 0, 0] and sum(counts) == DRAWS
    with pytest.raises(UserError, match="only 1 clients have a positive weight"):
        pairs_drawn(weighted(), [3, 0, 0, 0])


def test_weights_that_cannot_be_are_refused(toys):
    for bad in ((1.0, -1.0), (1.0, float("nan")), (1.0, float("inf"))):
        with pytest.raises(ValueError, match="finite and not negative"):
            weighted(bad)
    with pytest.raises(UserError, match="3 weights for 4 clients"):
        toys.build(
            fedavg, toys.clients([1.0] * 4, [0.0] * 4), cohort_size=2, steps=1, participation=weighted((1, 1, 1))
        )


def test_one_client_by_its_rows_with_uniform_weights_is_unbiased_for_all_rows(toys):
    """M = 1: the mean over draws of b is the mean over rows, 2000 draws, five standard errors."""
    sizes, b = np.array([1, 2, 7]), np.array([0.0, 3.0, 10.0])
    ask = Ask(0, 0, 3, 1, lambda ids: sizes[ids], None, None)
    found = np.array([b[weighted().draw(ask._replace(round=r)).ids[0]] for r in range(2000)])
    assert found.mean() == pytest.approx((sizes * b).sum() / 10, abs=5 * found.std() / np.sqrt(2000))
