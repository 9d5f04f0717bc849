"""CIFAR-100 with its 100 fine classes: 50,000 + 10,000 color images, 32 x 32.

Krizhevsky, Learning multiple layers of features from tiny images, technical report, 2009. Mean and deviation
are those of the FedDyn code (Acar et al., ICLR 2021).
"""

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._files import CifarLayout, load_cifar_set

_LAYOUT = CifarLayout(
    archive="cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    parts={"train": ("train.bin",), "test": ("test.bin",)},
    label_bytes=2,  # coarse, then fine
    python_folder="cifar-100-python",
    python_label="fine_labels",
)


def cifar100(data_dir: str | None = None) -> Dataset:
    """The set from `cifar100.npz` or the official binary files: x [N, 32, 32, 3] uint8, 100 fine classes."""
    return load_cifar_set(
        "cifar100",
        data_dir,
        _LAYOUT,
        num_classes=100,
        row_shape=(32, 32, 3),
        mean=(0.5071, 0.4867, 0.4408),
        std=(0.2675, 0.2565, 0.2761),
    )


EXAMPLES = ({},)
