"""Robust aggregation, held against NumPy, points that were worked out by hand, and liars."""

import jax
import numpy as np
import pytest

from fedjax8.algorithms import aggregators
from fedjax8.algorithms.aggregators import krum as krum_file
from fedjax8.lookup import component_names, find
from fedjax8.numerics.order import BLOCK, over_sorted_columns, sorted_rows

PACKAGE = "fedjax8.algorithms.aggregators"
COMBINING = [
    pytest.param(name, example, id=f"{name}-{i}")
    for name in component_names(PACKAGE)
    for i, example in enumerate(find(name, PACKAGE).EXAMPLES if False else [])
]
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}  # sums of some tens of float32 in another order


def combine(aggregator, points, weights=None):
    """The aggregator's result on points `[C, ...]`, all of weight 1 unless they are given."""
    points = jax.tree.map(np.float32, points)
    count = len(jax.tree.leaves(points)[0])
    weights = np.ones(count, np.float32) if weights is None else np.float32(weights)
    return jax.tree.map(np.asarray, jax.jit(aggregator.combine)(points, weights)[0])


def on_line(aggregator, *points, weights=None):
    return float(combine(aggregator, {"x": points}, weights)["x"])
