"""Front of `fedjax8/configs/fashion_mnist_fp8.py`, which `--config=fashion_mnist_fp8` names as well."""

from fedjax8.configs.fashion_mnist_fp8 import get_config as get_config
