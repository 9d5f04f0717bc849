"""Uniform cohorts: a function of seed and round, every subset as likely as any other."""

import itertools
import time
import tracemalloc

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.participation import sample_cohort


def test_a_cohort_depends_on_seed_and_round_alone():
    first = sample_cohort(3, 8, 1000, 20)
    np.testing.assert_array_equal(first, sample_cohort(3, 8, 1000, 20))
    assert not np.array_equal(first, sample_cohort(3, 9, 1000, 20))
    assert not np.array_equal(first, sample_cohort(4, 8, 1000, 20))
    assert first.dtype == np.int32


@pytest.mark.parametrize(("clients", "cohort"), [(1, 1), (10, 10), (50, 7), (20_000, 50), (20_000, 15_000)])
def test_a_cohort_holds_different_clients_in_ascending_order(clients, cohort):
    ids = sample_cohort(0, 0, clients, cohort)
    assert len(ids) == cohort and ids[0] >= 0 and ids[-1] < clients
    assert np.all(np.diff(ids) > 0)


def test_every_pair_of_clients_is_equally_likely():
    draws, pairs = 3000, list(itertools.combinations(range(5), 2))
    seen = [tuple(sample_cohort(0, r, 5, 2).tolist()) for r in range(draws)]
    counts = np.array([seen.count(pair) for pair in pairs])
    assert counts.sum() == draws
    # 3000 draws, 10 pairs: 300 each, standard error sqrt(3000 * 0.1 * 0.9) = 16.4; four of them allowed.
    assert np.abs(counts - 300).max() < 4 * 16.4


def test_a_cohort_of_ten_million_clients_costs_little():
    tracemalloc.start()
    begun = time.perf_counter()
    for round_number in range(10):
        ids = sample_cohort(0, round_number, 10_000_000, 1000)
    seconds, (_, peak) = time.perf_counter() - begun, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(np.unique(ids)) == 1000
    # An array over all clients would take 80 MB and about 0.05 s a draw; both bounds leave room for slow
    # machines.
    assert peak < 2**20
    assert seconds < 0.4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0, 0, 10, 11), "cohort_size is 11 of 10"),
        ((0, 0, 10, 0), "cohort_size is 0"),
        ((0, 0, 0, 1), "num_clients is 0"),
        ((-1, 0, 10, 1), "seed is -1"),
        ((0, -1, 10, 1), "round_number -1"),
    ],
)
def test_impossible_cohorts_are_named(arguments, says):
    with pytest.raises(UserError, match=says):
        sample_cohort(*arguments)
