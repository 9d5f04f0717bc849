"""Constants that normalize inputs, and rows that initialize a model, where rows may be private."""

import numpy as np

from fedjax8.data.drawn import IMAGE_MEAN, IMAGE_STD, drawn_rows
from fedjax8.data.federated import Dataset
from fedjax8.engine.start import CALIBRATION_ROWS
from fedjax8.errors import UserError, mistakes_of


def normalization(dataset: Dataset, mean: tuple, std: tuple, private: bool) -> tuple[tuple, tuple]:
    """Mean and deviation that inputs are normalized by: constants given, else those of the data set.

    For private rows these must not be measured: then images are taken to the middle of their range, and UserError for
    columns without a range, for classes that were counted on the rows, and for what else a source learned from them.
    """
    x = dataset.train["x"]
    if mean or std:
        with mistakes_of("config.input_mean"):
            mean, std = tuple(map(float, mean)), tuple(map(float, std))
        if x.dtype == np.int32:
            raise UserError(
                f"config.input_mean: rows of {dataset.name} are symbols, which are not normalized; leave it out"
            )
        if not (len(mean) == len(std) and len(mean) in (1, x.shape[-1]) and np.isfinite(mean).all() and min(std) > 0):
            raise UserError(
                f"config.input_mean and config.input_std are {mean} and {std}; give both, as one number each or as "
                f"{x.shape[-1]}, input_std above 0"
            )
    if private and dataset.learned:
        raise UserError(
            f"config.data: {' and '.join(dataset.learned)} of {dataset.name} were read off its training rows, which "
            "are private here, and no epsilon accounts for that; write the rows by lists that are publicly known, such "
            "as columns of 0 and 1 for each value, or leave such columns out"
        )
    if private and dataset.num_classes is not None and "num_classes" not in dataset.constants:
        raise UserError(
            f"config.data: how many classes {dataset.name} has was read off its labels, which are private here; set "
            f"--config.data.num_classes={dataset.num_classes} if that is publicly known, where the source takes it; "
            "csv takes --config.data.classes, their names"
        )
    if mean:
        return mean, std
    if not private or "mean" in dataset.constants:
        return dataset.mean, dataset.std
    if x.dtype == np.uint8:
        return IMAGE_MEAN, IMAGE_STD
    raise UserError(
        f"config.data: mean and deviation of {dataset.name} are measured on its training rows, which are private here, "
        "and no epsilon accounts for that; give constants that are publicly known: --config.input_mean=0.0 "
        "--config.input_std=1.0"
    )


def public_sample(dataset: Dataset, mean: tuple, std: tuple) -> dict[str, np.ndarray]:
    """Drawn rows to initialize a model on where all rows of the data set are private."""
    return drawn_rows(dataset.train, CALIBRATION_ROWS, mean=mean, std=std, num_classes=dataset.num_classes)
