"""Fashion-MNIST: 60,000 + 10,000 articles of clothing, 28 x 28 gray.

Xiao, Rasul and Vollgraf, Fashion-MNIST, arXiv:1708.07747, 2017.
"""

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._files import load_idx_set


def fashion_mnist(data_dir: str | None = None) -> Dataset:
    """The set from `fashion_mnist.npz` or the official idx files: x [N, 28, 28, 1] uint8, 10 classes."""
    return load_idx_set("fashion_mnist", data_dir, num_classes=10, row_shape=(28, 28, 1), mean=(0.2860,), std=(0.3530,))


EXAMPLES = ({},)
