"""FP8FedAvg-UQ on Fashion-MNIST with LeNet-5: 100 clients with Dirichlet 0.3 label skew, 10 a round.

python -m fedjax8.train --config=fashion_mnist_fp8 --data_dir=DIR
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component


def get_config() -> ConfigDict:
    """LeNet-5, two local epochs of batch 20."""
    config = base_config()
    config.data = component("fashion_mnist")
    config.num_clients, config.cohort_size = 100, 10
    config.rounds = 60
    config.model = component("lenet5")
    config.client.batch_size, config.client.epochs = 20, 2
    config.client.optimizer = component("sgd", learning_rate=0.1)
    return config
