"""Front of `fedjax8/configs/fda.py`, which `--config=fda` names as well."""

from fedjax8.configs.fda import get_config as get_config
