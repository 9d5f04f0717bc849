"""Made-up data of any shape and size: one Gaussian blob per class, and any number of clients over them.

    x = clip(round(128 + 40 * (separation * center[y] + noise)), 0, 255)
    |center[y]|_2 = 1,   noise ~ N(0, I)

so two class centers lie about separation * sqrt(2) standard deviations apart, whatever the shape, and the
best possible classifier errs with probability of about (num_classes - 1) * Phi(-separation / sqrt(2)).
Centers are constant over blocks of four along every axis but the last, which gives convolutions something to
find. Made for tests, benchmarks and scale, not for conclusions.
"""

import math
from collections.abc import Mapping

import numpy as np

from fedjax8.data.federated import Dataset, FederatedData
from fedjax8.data.partitions.windows import random_windows
from fedjax8.data.sources._build import build_dataset

_GRAY_PER_DEVIATION = 40.0  # 3.2 deviations of noise on either side of the middle before clipping
_BLOCK = 4
_ROWS_AT_ONCE = 1024  # of float32 noise held at once


def synthetic(
    shape: tuple[int, ...] = (32, 32, 3),
    num_classes: int = 10,
    *,
    num_examples: int = 10_000,
    num_test: int = 2_000,
    separation: float = 8.0,
    seed: int = 0,
) -> Dataset:
    """Gaussian class blobs as uint8, classes equally frequent to within one row.

    Args:
        shape: of one row.
        num_classes: at least 1.
        num_examples: training rows.
        num_test: test rows, from the same blobs.
        separation: distance of the class centers from the middle in deviations of the noise; 0 leaves nothing
            to learn.
        seed: same seed and settings, same bytes.
    """
    for name, value in (("num_classes", num_classes), ("num_examples", num_examples), ("num_test", num_test)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not (separation >= 0 and math.isfinite(separation)):
        raise ValueError(f"separation is {separation}; it must be a finite number, 0 or more")
    shape = tuple(shape)
    if not shape or min(shape) < 1:
        raise ValueError(f"shape is {shape}; it must be one or more lengths of at least 1")
    rng = np.random.default_rng(seed)
    centers = separation * np.stack([_center(rng, shape) for _ in range(num_classes)])
    arrays = {}
    for part, rows in (("train", num_examples), ("test", num_test)):
        labels = rng.permutation(np.arange(rows, dtype=np.int32) % num_classes)
        arrays |= {f"x_{part}": _blobs(rng, centers, labels), f"y_{part}": labels}
    return build_dataset("synthetic", "synthetic", arrays, num_classes=num_classes)


def synthetic_clients(
    columns: Mapping[str, np.ndarray],
    num_clients: int,
    *,
    sizes: tuple[int, int] = (1, 200),
    by_label: bool = False,
    seed: int = 0,
) -> FederatedData:
    """Any number of clients as random windows into one pool of rows, at twelve bytes a client.

    As the partition `windows`, for rows that need not be a `Dataset`.

    Args:
        columns: the pool, name -> [N, ...], such as `synthetic().train`; rows are shared, not copied.
        num_clients: K, may be far above N.
        sizes: smallest and largest client, both included; sizes are uniform in between.
        by_label: windows over rows sorted by column `y`, so that a client sees one or two classes; else over
            rows in random order.
        seed: of order, sizes and starts.
    """
    rng, rows = np.random.default_rng(seed), len(next(iter(columns.values())))
    labels = columns["y"] if by_label else None
    order, starts, windows, _ = random_windows(rng, rows, num_clients, sizes, labels)
    return FederatedData(columns, order, starts, windows)


def _center(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    blocks = (*(math.ceil(length / _BLOCK) for length in shape[:-1]), shape[-1])
    center = rng.standard_normal(blocks, dtype=np.float32)
    for axis, length in enumerate(shape[:-1]):
        center = np.repeat(center, _BLOCK, axis).take(np.arange(length), axis)
    return center / np.linalg.norm(center)


def _blobs(rng: np.random.Generator, centers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    x = np.empty((len(labels), *centers.shape[1:]), np.uint8)
    for start in range(0, len(labels), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        values = rng.standard_normal(x[rows].shape, dtype=np.float32) + centers[labels[rows]]
        x[rows] = np.clip(np.rint(128 + _GRAY_PER_DEVIATION * values), 0, 255)
    return x


EXAMPLES = (
    {"num_examples": 200, "num_test": 50},
    {"shape": (20,), "num_classes": 3, "num_examples": 100, "num_test": 40, "separation": 3.0, "seed": 1},
    {"shape": (9, 7, 1), "num_classes": 2, "num_examples": 64, "num_test": 16},
)
