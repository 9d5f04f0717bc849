"""The config `fedpeft` of the package: `--config=configs/fedpeft.py` is `--config=fedpeft`."""

from fedjax8.configs.fedpeft import get_config as get_config
