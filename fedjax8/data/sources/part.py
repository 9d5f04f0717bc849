"""Part of another data set: so many of its rows, drawn once, or some of its classes alone.

For studies with little data, and for a model that is trained on some classes and fine-tuned on the others. Rows
are drawn uniformly without replacement before anything is split over clients, so that a split is one of the very rows
that are there, with the skew that it was asked for.

    --config.data.name=part --config.data.of=cifar10 --config.data.rows=1000 --config.data.classes=(0,1,8,9)
"""

import inspect
from collections.abc import Sequence

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.partitions._common import num_classes
from fedjax8.data.sources._build import check_wanted, drawn_rows
from fedjax8.data.sources.npz import npz
from fedjax8.errors import UserError
from fedjax8.lookup import find


def part(
    data_dir: str | None = None,
    of: str = "digits",
    *,
    rows: int = 0,
    test_rows: int = 0,
    classes: Sequence[int] = (),
    seed: int = 0,
) -> Dataset:
    """Some rows of the set `of`, in their order there. Mean and deviation stay those of the whole set.

    Args:
        data_dir: handed on to `of`; None for `$FEDJAX8_DATA`.
        of: a source, with its own settings at their defaults, or a file such as `femnist.npz` in the data directory.
        rows: training rows to draw; 0 for all.
        test_rows: test rows to draw; 0 for all.
        classes: labels to keep, numbered anew from 0 in this order; all where empty. Kept first, then drawn from.
        seed: of the draw.

    Raises:
        UserError: no such set, fewer rows than are asked for, or labels that it does not have; a set of sequences or
            of clients as windows, which has no part.
    """
    check_wanted(rows=rows, test_rows=test_rows)
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes must be different labels; got {tuple(classes)}")
    dataset = _whole(of, data_dir)
    if classes and not dataset.num_classes:
        raise UserError(f"part: the targets of {dataset.name} are no classes; leave classes out")
    new = _new_labels(dataset, classes)

    def numbered(y: np.ndarray) -> np.ndarray:
        return new[y] if dataset.num_classes else y

    labels = {name: getattr(dataset, name)["y"] for name in ("train", "test")}
    kept = {
        name: np.flatnonzero(numbered(y) >= 0) if dataset.num_classes else np.arange(len(y))
        for name, y in labels.items()
    }
    counts = {name: len(found) for name, found in kept.items()}
    drawn = drawn_rows(f"part of {dataset.name}", seed, counts, {"train": rows, "test": test_rows})
    kept = {name: found[drawn[name]] for name, found in kept.items()}

    def columns(name: str) -> dict[str, np.ndarray]:
        whole = getattr(dataset, name)
        return {"x": whole["x"][kept[name]], "y": numbered(whole["y"][kept[name]])}

    made = dataset._replace(
        train=columns("train"),
        test=columns("test"),
        num_classes=len(classes) or dataset.num_classes,
        owners=None if dataset.owners is None else dataset.owners[kept["train"]],
        test_owners=None if dataset.test_owners is None else dataset.test_owners[kept["test"]],
        class_names=tuple(dataset.class_names[label] for label in classes) or dataset.class_names
        if dataset.class_names
        else (),
    )
    return made.validate() if dataset.num_classes else made


def _whole(of: str, data_dir: str | None) -> Dataset:
    """The set that a part is wanted of."""
    if of.endswith(".npz"):
        dataset = npz(data_dir, of)
    else:
        source = find(of, "fedjax8.data.sources")
        takes = inspect.signature(source).parameters
        dataset = source(data_dir) if "data_dir" in takes else source()
    if dataset.clients is not None or (dataset.train["y"].ndim > 1 and dataset.num_classes):
        raise UserError(f"part: {dataset.name} is a set of sequences, or of clients as windows; only rows are drawn")
    return dataset


def _new_labels(dataset: Dataset, classes: Sequence[int]) -> np.ndarray:
    """[num_classes] int32: the new label of each old one, -1 for one that is left out."""
    number = num_classes(dataset)
    if not classes:
        return np.arange(number, dtype=np.int32)
    wrong = [label for label in classes if not 0 <= label < number]
    if wrong:
        raise UserError(f"part: {dataset.name} has the labels 0 to {number - 1}, and not {wrong[0]}")
    new = np.full(number, -1, np.int32)
    new[list(classes)] = np.arange(len(classes))
    return new


EXAMPLES = ({"of": "cifar10", "rows": 1000, "classes": (0, 1, 8, 9)},)
