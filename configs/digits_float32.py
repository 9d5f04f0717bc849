"""The config `digits_float32` of the package: `--config=configs/digits_float32.py` is `--config=digits_float32`."""

from fedjax8.configs.digits_float32 import get_config as get_config
