"""The config `shakespeare_fp8` of the package: `--config=configs/shakespeare_fp8.py` is `--config=shakespeare_fp8`."""

from fedjax8.configs.shakespeare_fp8 import get_config as get_config
