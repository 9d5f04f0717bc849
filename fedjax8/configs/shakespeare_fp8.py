"""FP8FedAvg-UQ on Shakespeare's plays: the next character, every one of 1,341 speaking roles a client, 10 a round.

python -m fedjax8.train --config=shakespeare_fp8 --data_dir=DIR

It sends 829 MB each way, 3.96 times less than in float32. On another grid than the default, e4m3fnuz with float32
gradients (--config.format=e4m3fnuz --config.adapter.gradients=None), it had a test accuracy of 0.467 after 100 rounds
(0.426 after 50), and took 307 seconds on two cores of an Intel Xeon (2026-11-24), which others used as well. On the
default grid it was not measured.
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component


def get_config() -> ConfigDict:
    """The character LSTM, one local epoch of batch 4 with SGD 1.0; rounds and step size are this project's choice."""
    config = base_config()
    config.data = component("shakespeare")
    config.partition = component("by_key")
    config.num_clients, config.cohort_size = 0, 10
    config.rounds, config.eval_every = 100, 50
    config.model = component("char_lstm")
    config.client.batch_size, config.client.epochs = 4, 1
    config.client.optimizer = component("sgd", learning_rate=1.0)
    return config
