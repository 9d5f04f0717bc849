"""The config `fda` of the package: `--config=configs/fda.py` is `--config=fda`."""

from fedjax8.configs.fda import get_config as get_config
