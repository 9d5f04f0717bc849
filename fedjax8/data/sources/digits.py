"""Handwritten digits, 1797 images of 8 x 8, that come with scikit-learn: real data without a download.

(Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI machine learning repository, 1998;
scikit-learn carries its test part.) Gray levels 0 to 16 become uint8 by round(v * 255 / 16), so that x / 255
is v / 16 to within 1/510 and the set can be treated like every other image set. The set has no official
split; ours is drawn per class.
"""

import gzip
import importlib.util
import zlib
from pathlib import Path

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset
from fedjax8.errors import UserError


def digits(*, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """Digits with x [N, 8, 8, 1] uint8 and 10 classes, split in training and test rows.

    Args:
        test_fraction: share of each class that goes to the test part, between 0 and 1.
        seed: of the split; rows keep their original order within each part.
    """
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; it must lie strictly between 0 and 1")
    levels, labels = _levels_and_labels()
    images = np.rint(levels.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
    is_test = _stratified(np.random.default_rng(seed), labels, test_fraction)
    arrays = {
        "x_train": images[~is_test],
        "y_train": labels[~is_test],
        "x_test": images[is_test],
        "y_test": labels[is_test],
    }
    return build_dataset("digits", "digits", arrays, num_classes=10)


def _levels_and_labels() -> tuple[np.ndarray, np.ndarray]:
    """(gray levels [N, 64], labels [N]) as `sklearn.datasets.load_digits` gives them, read from its file: importing
    scikit-learn takes longer than a dozen rounds of the default job."""
    found = importlib.util.find_spec("sklearn")
    places = found.submodule_search_locations if found else None
    if not places:
        raise UserError(
            "digits come with scikit-learn, which is not installed; install scikit-learn, or use the synthetic source"
        )
    path = Path(places[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path, "rt") as file:
            table = np.fromstring(file.read().replace("\n", ","), sep=",").reshape(-1, 65)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error}); install scikit-learn again") from error
    return table[:, :-1], table[:, -1].astype(np.int64)


def _stratified(rng: np.random.Generator, labels: np.ndarray, fraction: float) -> np.ndarray:
    """[N] bool: the given share of each class, rounded, but at least one row and not all."""
    chosen = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        take = min(max(round(fraction * len(rows)), 1), len(rows) - 1)
        chosen[rng.choice(rows, take, replace=False)] = True
    return chosen


EXAMPLES = ({}, {"test_fraction": 0.5, "seed": 3})
