"""FP8FedAvg-UQ on scikit-learn's handwritten digits: the default job.

python -m fedjax8.train --config=digits_fp8
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config


def get_config() -> ConfigDict:
    """The base config as it is."""
    return base_config()
