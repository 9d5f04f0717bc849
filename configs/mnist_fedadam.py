"""Front of `fedjax8/configs/mnist_fedadam.py`, which `--config=mnist_fedadam` names as well."""

from fedjax8.configs.mnist_fedadam import get_config as get_config
