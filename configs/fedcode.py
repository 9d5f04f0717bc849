"""The config `fedcode` of the package: `--config=configs/fedcode.py` is `--config=fedcode`."""

from fedjax8.configs.fedcode import get_config as get_config
