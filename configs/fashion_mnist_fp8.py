"""The config `fashion_mnist_fp8` of the package: `--config=configs/fashion_mnist_fp8.py` is `--config=fashion_mnist_fp8`."""

from fedjax8.configs.fashion_mnist_fp8 import get_config as get_config
