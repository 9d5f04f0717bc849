"""FedAvg in float32 on CIFAR-10 with the LeNet-style CNN (797,962 parameters): 100 clients, Dirichlet 0.3, 10 a round.

Settings follow the public FedDyn code where it has them (5 local epochs of batch 50, SGD 0.1, weight decay 1e-3, no
augmentation); participation and concentration are this project's choice.

    python -m fedjax8.train --config=configs/cifar10_float32.py --data_dir=DIR
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32


def get_config() -> ConfigDict:
    """1000 rounds; shorten with --config.rounds=N."""
    config = base_config()
    config.data = component("cifar10")
    config.num_clients, config.cohort_size = 100, 10
    config.rounds, config.eval_every = 1000, 10
    config.model = component("cnn")
    config.client.batch_size, config.client.epochs = 50, 5
    config.client.optimizer = component("sgd", learning_rate=0.1)
    config.client.weight_decay = 1e-3
    return in_float32(config)
