"""Front of `fedjax8/configs/personal.py`, which `--config=personal` names as well."""

from fedjax8.configs.personal import get_config as get_config
