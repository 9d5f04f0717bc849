"""Share of rows whose class is named; of sequences, of positions."""

from fedjax8.directions import HIGHER
from fedjax8.models import linen
from fedjax8.tasks.base import Metric
from fedjax8.types import CLASSES, Array


def accuracy() -> Metric:
    """1 for a row whose largest output is that of its class; of a sequence the mean over its targets."""
    return Metric("accuracy", HIGHER, (CLASSES,), of_row=hits)


def hits(outputs: Array, targets: Array) -> Array:
    """float32 `[B]`."""
    return linen.accuracy(outputs, {"y": targets})["accuracy"]


EXAMPLES = ({},)
