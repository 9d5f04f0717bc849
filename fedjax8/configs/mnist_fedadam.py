"""FedAdam in float32 on MNIST with LeNet-5: 100 clients with Dirichlet 0.3 label skew, 10 a round.

Server and client step sizes and moments are those commonly shipped for FedAdam (0.1, 0.1, 0.9, 0.99, tau 1e-3), with
the server's made smaller because it also steps for weights that hardly move.

    python -m fedjax8.train --config=mnist_fedadam --data_dir=DIR
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32


def get_config() -> ConfigDict:
    """LeNet-5, one local epoch of batch 20."""
    config = base_config()
    config.data = component("mnist")
    config.num_clients, config.cohort_size = 100, 10
    config.rounds = 60
    config.model = component("lenet5")
    config.client.batch_size, config.client.epochs = 20, 1
    config.client.optimizer = component("sgd", learning_rate=0.05)
    config.algorithm = component("fedopt", server_optimizer=component("fedadam", learning_rate=0.01))
    return in_float32(config)
