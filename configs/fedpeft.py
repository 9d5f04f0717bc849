"""Front of `fedjax8/configs/fedpeft.py`, which `--config=fedpeft` names as well."""

from fedjax8.configs.fedpeft import get_config as get_config
