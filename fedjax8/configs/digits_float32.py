"""FedAvg in float32 on scikit-learn's handwritten digits: the default job without quantization.

python -m fedjax8.train --config=digits_float32
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, in_float32


def get_config() -> ConfigDict:
    """The base config with nothing quantized and nothing encoded."""
    return in_float32(base_config())
