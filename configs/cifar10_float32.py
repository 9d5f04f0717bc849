"""FedAvg in float32 on CIFAR-10 with the LeNet-style CNN: `cifar10_fp8.py` with nothing quantized and nothing encoded.

python -m fedjax8.train --config=configs/cifar10_float32.py --data_dir=DIR
"""

from pathlib import Path

from ml_collections import ConfigDict

from fedjax8.config import in_float32, load_config


def get_config() -> ConfigDict:
    """The settings of the FP8 run, in float32."""
    return in_float32(load_config(str(Path(__file__).with_name("cifar10_fp8.py"))))
