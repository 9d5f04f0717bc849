"""MNIST: 60,000 + 10,000 handwritten digits, 28 x 28 gray.

LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE 86(11), 1998.
"""

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._files import load_idx_set


def mnist(data_dir: str | None = None, *, standardize: bool = True) -> Dataset:
    """The set from `mnist.npz` or the official idx files: x [N, 28, 28, 1] uint8, 10 classes, 255 = ink.

    A model is fed x / 255 less 0.1307 over 0.3081, the training set's mean and deviation; x / 255 itself without
    `standardize`.
    """
    mean, std = ((0.1307,), (0.3081,)) if standardize else ((0.0,), (1.0,))
    return load_idx_set("mnist", data_dir, num_classes=10, row_shape=(28, 28, 1), mean=mean, std=std)


EXAMPLES = ({}, {"standardize": False})
