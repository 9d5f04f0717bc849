"""Clusters: the mean of means, the cost of a ring beside a simulated one, and the best cut beside all of them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.clusters import (
    SHORTFALL,
    clusters_by_memory_and_speed,
    ring_all_reduce_bytes,
    two_level_mean,
)


def ring(values):
    """(values of every member after a ring all-reduce, values that each sent), segment by segment."""
    n, held, sent = len(values), np.array(values, np.float64), 0
    segments = np.array_split(np.arange(held.shape[1]), n)
    for adding in (True, False):
        for step in range(n - 1):
            moved = [(k - step + (0 if adding else 1)) % n for k in range(n)]
            messages = [held[k, segments[s]].copy() for k, s in enumerate(moved)]
            for k, s in enumerate(moved):
                to = (k + 1) % n
                held[to, segments[s]] = messages[k] + (held[to, segments[s]] if adding else 0)
            sent += len(messages[0])
    return held, sent


@pytest.mark.parametrize("members", [1, 2, 3, 8])
def test_a_ring_costs_what_a_simulated_one_sends(members):
    values = np.random.default_rng(0).normal(size=(members, 24))
    held, sent = ring(values)
    np.testing.assert_allclose(held, np.tile(values.sum(0), (members, 1)), rtol=1e-12, atol=1e-12)
    assert ring_all_reduce_bytes(4 * 24, members) == 4 * sent == 4 * 24 * 2 * (members - 1) / members


def test_a_ring_of_two_sends_the_values_once_and_a_large_one_twice():
    assert ring_all_reduce_bytes(10**6, 2) == 10**6
    assert 2 * 10**6 - 20 <= ring_all_reduce_bytes(10**6, 10**5) <= 2 * 10**6
    with pytest.raises(ValueError, match="members"):
        ring_all_reduce_bytes(8, 0)


def test_the_mean_of_means_by_size_is_the_flat_mean():
    rng = np.random.default_rng(1)
    tree = {"w": rng.normal(size=(7, 3, 2)).astype(np.float32), "b": rng.normal(size=7).astype(np.float32)}
    weights, clusters = np.float32([1, 5, 2, 0, 3, 4, 0]), np.int32([0, 1, 0, 3, 1, 0, 3])
    mean, means, totals = two_level_mean(tree, jnp.asarray(weights), jnp.asarray(clusters), 4)
    np.testing.assert_array_equal(totals, [7, 8, 0, 0])
    for name, x in tree.items():
        np.testing.assert_allclose(mean[name], np.average(x, axis=0, weights=weights), atol=1e-6)
        np.testing.assert_allclose(means[name][1], np.average(x[[1, 4]], axis=0, weights=[5, 3]), atol=1e-6)
        np.testing.assert_array_equal(means[name][2:], 0)


def test_clusters_are_the_best_of_all_cuts_by_speed():
    rng = np.random.default_rng(2)
    for _ in range(5):
        memory, speeds = rng.uniform(1, 8, 8), rng.lognormal(0, 1, 8)
        order, best = np.argsort(speeds), np.inf

        def total(labels):
            groups = [np.flatnonzero(labels == c) for c in np.unique(labels)]
            lacking = sum(max(0, 1 - memory[g].sum() / 10) for g in groups)
            return SHORTFALL * lacking + sum(np.std(speeds[g] / speeds.mean()) for g in groups)

        for k in range(3):
            for cuts in itertools.combinations(range(1, 8), k):
                labels = np.zeros(8, int)
                labels[order] = np.searchsorted(cuts, np.arange(8), side="right")
                best = min(best, total(labels))
        assert total(clusters_by_memory_and_speed(memory, speeds, 10.0, 3)) == pytest.approx(best, rel=1e-12)


def test_fast_and_slow_clients_with_memory_enough_are_apart():
    speeds = np.array([1.0, 10.0, 1.1, 11.0])
    np.testing.assert_array_equal(clusters_by_memory_and_speed(np.full(4, 5.0), speeds, 10.0, 2), [0, 1, 0, 1])
    np.testing.assert_array_equal(clusters_by_memory_and_speed(np.full(4, 5.0), speeds, 20.0, 2), [0] * 4)
    with pytest.raises(ValueError, match="a memory and a speed"):
        clusters_by_memory_and_speed(np.ones(3), speeds, 1.0)
