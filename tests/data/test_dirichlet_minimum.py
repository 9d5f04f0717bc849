"""The label-wise Dirichlet split draws again until every client has its rows."""

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions.dirichlet import dirichlet


def test_a_label_wise_split_keeps_its_minimum_where_a_draw_without_one_breaks_it():
    rng = np.random.default_rng(5)
    columns = {"x": np.zeros((400, 1), np.float32), "y": rng.integers(0, 4, 400).astype(np.int32)}
    data = Dataset(columns, {n: c[:1] for n, c in columns.items()}, 4, (0.0,), (1.0,), "hand made", None, None)

    def smallest(seed, min_size):
        split = dirichlet(0.8, balanced=False, min_size=min_size)
        return np.bincount(split(np.random.default_rng(seed), data, 6), minlength=6).min()

    assert min(smallest(seed, 30) for seed in range(10)) >= 30
    assert sum(smallest(seed, 1) < 30 for seed in range(10)) >= 5
