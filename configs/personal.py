"""The config `personal` of the package: `--config=configs/personal.py` is `--config=personal`."""

from fedjax8.configs.personal import get_config as get_config
