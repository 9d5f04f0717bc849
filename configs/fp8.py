"""The config `fp8` of the package: `--config=configs/fp8.py` is `--config=fp8`."""

from fedjax8.configs.fp8 import get_config as get_config
