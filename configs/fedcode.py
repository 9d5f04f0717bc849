"""Front of `fedjax8/configs/fedcode.py`, which `--config=fedcode` names as well."""

from fedjax8.configs.fedcode import get_config as get_config
