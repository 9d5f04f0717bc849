"""FedAvg in float32 on Fashion-MNIST with LeNet-5: `fashion_mnist_fp8.py` with nothing quantized and nothing encoded.

python -m fedjax8.train --config=fashion_mnist_float32 --data_dir=DIR
"""

from ml_collections import ConfigDict

from fedjax8.config import in_float32, load_config


def get_config() -> ConfigDict:
    """The settings of the FP8 run, in float32."""
    return in_float32(load_config("fashion_mnist_fp8"))
