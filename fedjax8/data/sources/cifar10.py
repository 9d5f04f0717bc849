"""CIFAR-10: 50,000 + 10,000 color images, 32 x 32.

Krizhevsky, Learning multiple layers of features from tiny images, technical report, 2009. Mean and deviation
are those of the FedDyn code (Acar et al., ICLR 2021).
"""

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._files import CifarLayout, load_cifar_set

_LAYOUT = CifarLayout(
    archive="cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    parts={"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)},
    label_bytes=1,
    python_folder="cifar-10-batches-py",
)


def cifar10(data_dir: str | None = None) -> Dataset:
    """The set from `cifar10.npz` or the official binary files: x [N, 32, 32, 3] uint8, 10 classes."""
    return load_cifar_set(
        "cifar10",
        data_dir,
        _LAYOUT,
        num_classes=10,
        row_shape=(32, 32, 3),
        mean=(0.491, 0.482, 0.447),
        std=(0.247, 0.243, 0.262),
    )


EXAMPLES = ({},)
