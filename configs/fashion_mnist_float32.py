"""The config `fashion_mnist_float32` of the package: `--config=configs/fashion_mnist_float32.py` is `--config=fashion_mnist_float32`."""

from fedjax8.configs.fashion_mnist_float32 import get_config as get_config
