"""Measures of unequal splits against hand computation and scipy-free formulas."""

import math

import numpy as np
import pytest

from fedjax8.data.federated import FederatedData
from fedjax8.data.heterogeneity import label_skew


def federated(labels, owners, num_clients):
    return FederatedData.from_owners({"y": np.array(labels, np.int32)}, np.array(owners), num_clients)


def js_by_entropies(p, q):
    """H((p + q) / 2) - (H(p) + H(q)) / 2, another form of the same quantity."""

    def entropy(distribution):
        return -sum(v * math.log2(v) for v in distribution if v > 0)

    return entropy([(a + b) / 2 for a, b in zip(p, q, strict=True)]) - (entropy(p) + entropy(q)) / 2


def test_clients_that_mirror_the_whole_have_no_skew():
    skew = label_skew(federated([0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 2, 2], 3), 2)
    np.testing.assert_array_equal(skew.js, 0.0)
    np.testing.assert_array_equal(skew.hellinger, 0.0)


def test_single_class_clients_against_a_balanced_whole_are_as_by_hand():
    # p = (1, 0), g = (1/2, 1/2), m = (3/4, 1/4):
    # js = (log2(4/3) + log2(2/3)/2 + log2(2)/2) / 2 = 0.311278, hellinger^2 = 1 - sqrt(1/2).
    skew = label_skew(federated([0, 0, 1, 1], [0, 0, 1, 1], 2), 2)
    np.testing.assert_allclose(skew.js, [0.311278, 0.311278], atol=1e-6)
    np.testing.assert_allclose(skew.hellinger, math.sqrt(1 - math.sqrt(0.5)), rtol=1e-12)


def test_skew_agrees_with_entropies_and_overlaps_for_random_clients():
    rng = np.random.default_rng(0)
    labels, owners = rng.integers(0, 6, 300), rng.integers(0, 9, 300)
    data = federated(labels, owners, 9)
    skew = label_skew(data, 6)
    pooled = np.bincount(labels, minlength=6) / 300
    for client in range(9):
        own = np.bincount(labels[owners == client], minlength=6)
        own = own / own.sum()
        # float64 sums of six terms of order one
        assert skew.js[client] == pytest.approx(js_by_entropies(own, pooled), abs=1e-12)
        overlap = sum(math.sqrt(a * b) for a, b in zip(own, pooled, strict=True))
        assert skew.hellinger[client] == pytest.approx(math.sqrt(1 - overlap), abs=1e-7)
    np.testing.assert_array_equal(skew.sizes, np.bincount(owners, minlength=9))


def test_a_rare_class_held_by_one_client_comes_near_one_bit():
    labels, owners = [1] + [0] * 9999, [0] + [1] * 9999
    skew = label_skew(federated(labels, owners, 2), 2)
    assert 0.99 < skew.js[0] < 1.0 and 0.99 < skew.hellinger[0] < 1.0
    assert skew.js[1] < 1e-3


def test_small_iid_clients_show_the_documented_bias():
    clients, rows, classes = 1000, 200, 10
    rng = np.random.default_rng(1)
    data = federated(rng.integers(0, classes, clients * rows), np.repeat(np.arange(clients), rows), clients)
    mean = label_skew(data, classes).js.mean()
    expected = (classes - 1) / (8 * rows * math.log(2))
    # The formula is the leading order in classes / rows = 0.05, hence good to about that share. The mean over
    # 1000 clients has a relative standard error of sqrt(2 / 9 / 1000) = 0.015 (a chi-square of 9 degrees) on
    # top.
    assert mean == pytest.approx(expected, rel=0.05 + 3 * 0.015)


def test_an_empty_client_is_nan_and_left_out_of_the_summary():
    skew = label_skew(federated([0, 1, 0, 1], [0, 0, 2, 2], 3), 2)
    assert np.isnan(skew.js[1]) and np.isnan(skew.hellinger[1])
    summary = skew.summary()
    assert summary["js_mean"] == 0.0 and summary["size_min"] == 0.0
    assert all(math.isfinite(value) for value in summary.values())


def test_the_summary_describes_sizes():
    summary = label_skew(federated([0] * 10, [0] * 7 + [1] * 2 + [2], 3), 1).summary()
    assert (summary["size_min"], summary["size_median"], summary["size_max"]) == (1.0, 2.0, 7.0)
    assert summary["size_mean"] == pytest.approx(10 / 3)
    assert summary["size_std"] == pytest.approx(math.sqrt(((7 - 10 / 3) ** 2 + (4 / 3) ** 2 + (7 / 3) ** 2) / 3))
