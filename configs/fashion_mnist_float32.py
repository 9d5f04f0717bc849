"""Front of `fedjax8/configs/fashion_mnist_float32.py`, which `--config=fashion_mnist_float32` names as well."""

from fedjax8.configs.fashion_mnist_float32 import get_config as get_config
