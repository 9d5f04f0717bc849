"""The config `digits_fp8` of the package: `--config=configs/digits_fp8.py` is `--config=digits_fp8`."""

from fedjax8.configs.digits_fp8 import get_config as get_config
