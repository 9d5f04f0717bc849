"""Front of `fedjax8/configs/decentralized.py`, which `--config=decentralized` names as well."""

from fedjax8.configs.decentralized import get_config as get_config
