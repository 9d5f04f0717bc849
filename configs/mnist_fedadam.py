"""The config `mnist_fedadam` of the package: `--config=configs/mnist_fedadam.py` is `--config=mnist_fedadam`."""

from fedjax8.configs.mnist_fedadam import get_config as get_config
