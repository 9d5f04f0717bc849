"""Rows that are drawn without looking at any, for models that are initialized where the rows themselves are private.

    u ~ N(mean, deviation^2) on every value;     float columns u, images round(255 u) within 0 ... 255
    symbols and labels uniform over 0 ... num_classes - 1

A function of shapes, dtypes and the constants given: no row and no seed of a run changes them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

_STREAM = 0xD12A3
IMAGE_MEAN, IMAGE_STD = (0.5,), (0.25,)
"""Mean of x / 255 of any images: the middle of their range, two deviations to either side."""


def drawn_rows(
    columns: Mapping[str, np.ndarray],
    rows: int,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    num_classes: int | None = 1,
) -> dict[str, np.ndarray]:
    """Columns of `rows` drawn rows, with the row shapes and dtypes of `columns`.

    Args:
      columns: name -> [N, ...]; no value is read.
      rows: their number.
      mean: per channel, of x / 255 where columns are uint8; by default 0, or of images `IMAGE_MEAN`.
      std: likewise; 1, or `IMAGE_STD`.
      num_classes: symbols and labels to draw from; None where targets are no class numbers.
    """
    rng, found = np.random.default_rng(_STREAM), {}
    for name, column in columns.items():
        shape, image = (rows, *column.shape[1:]), column.dtype == np.uint8
        if column.dtype.kind in "iu" and (not image or name == "y"):
            found[name] = rng.integers(num_classes or 2, size=shape).astype(column.dtype)
            continue
        center: Sequence[float] = IMAGE_MEAN if image else (0.0,)
        spread: Sequence[float] = IMAGE_STD if image else (1.0,)
        if name == "x" and mean is not None and std is not None:
            center, spread = mean, std
        values = rng.standard_normal(shape, np.float32)
        values = values * np.asarray(spread, np.float32) + np.asarray(center, np.float32)
        found[name] = np.clip(np.rint(255 * values), 0, 255).astype(np.uint8) if image else values.astype(column.dtype)
    return found
