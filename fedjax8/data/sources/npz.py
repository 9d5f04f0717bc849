"""Any data set kept as `NAME.npz`: FEMNIST, spoken digits, your own.

Arrays: `x_train` [N, ...] (uint8, floating or integer), `y_train` [N] integers from 0, or numbers [N] or [N, K] for the
task `regression`, 0 and 1 [N, L] for `multilabel`; `x_test`, `y_test` likewise, and where clients are natural
`client_train` [N] and `client_test`, integers from 0. Written by `numpy.savez` (uncompressed), arrays of a gibibyte and
more are memory-mapped.

    np.savez("mydata.npz", x_train=x, y_train=y, x_test=tx, y_test=ty, client_train=writers)
"""

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import check_standardize
from fedjax8.data.sources._files import data_directory, load_npz_set, missing_set
from fedjax8.types import CLASSES


def npz(
    data_dir: str | None = None,
    file: str = "",
    *,
    num_classes: int | None = None,
    standardize: str = "auto",
    targets: str = CLASSES,
) -> Dataset:
    """The set from `FILE.npz` in the data directory or its folder FILE.

    Args:
        data_dir: None for `$FEDJAX8_DATA`.
        file: its name, with or without `.npz`; needed.
        num_classes: largest label + 1 where None; labels that leave out most classes below that are refused.
        standardize: by which mean and deviation of the training rows floating or uint8 rows are scaled. `auto`: of each
            column of features [N, F] that are floating, of each channel of images [N, H, W, C], else of all values;
            `column`: of each place along the last axis; `whole`: of all values; `none`: rows stay as they are, uint8
            over 255.
        targets: supplied by the program: the kind that the task takes, class numbers or others.
    """
    check_standardize(standardize)
    name = file.removesuffix(".npz")
    if not name:
        raise ValueError("file is empty; it must be that of an .npz file in the data directory, such as 'femnist'")
    root = data_directory(name, data_dir)
    dataset = load_npz_set(name, root, num_classes=num_classes, standardize=standardize, targets=targets)
    if dataset is None:
        raise missing_set(name, root, (f"{name}.npz",))
    return dataset


EXAMPLES = ({"file": "femnist"}, {"file": "fsdd_logmel", "num_classes": 10})
