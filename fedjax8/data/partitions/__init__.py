"""Ways to split a data set over clients, one per file, each with a factory named like the file.

A factory returns `split(rng, dataset, num_clients) -> owners`: [N] int32, the client of every training row,
-1 for a row that stays unused. Every client gets at least one row; the same rng state gives the same split.
"""

from collections.abc import Callable

import numpy as np

from fedjax8.data.federated import Dataset

Split = Callable[[np.random.Generator, Dataset, int], np.ndarray]
