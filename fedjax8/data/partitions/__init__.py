"""Partitions of a data set over clients, one per file, each with a factory named like the file.

A factory returns `split(rng, dataset, num_clients) -> owners`: [N] int32, the client of every training row,
-1 for a row that stays unused. A split may return `Windows` instead, where clients share rows or where there are too
many rows for an owner each. Every client gets at least one row; the same rng state gives the same split.
"""

from collections.abc import Callable

import numpy as np

from fedjax8.data.federated import Dataset, Windows

Split = Callable[[np.random.Generator, Dataset, int], np.ndarray | Windows]
