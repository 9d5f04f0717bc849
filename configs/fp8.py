"""Front of `fedjax8/configs/fp8.py`, which `--config=fp8` names as well."""

from fedjax8.configs.fp8 import get_config as get_config
