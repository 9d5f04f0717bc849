"""Workers on a graph: accuracy against bytes between workers, by topology and codec.

    python -m fedjax8.train --config=decentralized:ring,choco --data_dir=DIR --workdir=runs/ring-choco
    python -m fedjax8.compare runs/*

The argument is TOPOLOGY,METHOD: topology `ring`, `exponential`, `matching` or `complete`; method `none` (float32
models), `fp8` (FP8 training and models) or `choco` (CHOCO-SGD, 5 % of the values of a difference, gamma 0.3).
Fashion-MNIST, 32 workers with a Dirichlet prior of concentration 0.3, a perceptron 784-200-10, one epoch a round in
batches of 20, SGD 0.1. All uplinks and downlinks have 1 Mbit/s, and a step takes 10 ms. docs/studies/decentralized.md
has results.
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError

TOPOLOGIES = ("ring", "exponential", "matching", "complete")
METHODS = ("none", "fp8", "choco")
WORKERS = 32


def get_config(argument: str = "ring,none") -> ConfigDict:
    """The run TOPOLOGY,METHOD."""
    topology, _, method = argument.partition(",")
    if topology not in TOPOLOGIES or method not in METHODS:
        raise UserError(
            f"--config=decentralized: give TOPOLOGY,METHOD, topology one of {', '.join(TOPOLOGIES)}, method one of "
            f"{', '.join(METHODS)}; got {argument!r}"
        )
    config = base_config()
    config.data, config.model = component("fashion_mnist"), component("mlp", hidden=(200,))
    config.num_clients = config.cohort_size = WORKERS
    config.partition = component("dirichlet", concentration=0.3)
    config.rounds, config.eval_every = 40, 2
    config.client.batch_size, config.client.epochs = 20, 1
    config.client.optimizer = component("sgd", learning_rate=0.1)
    config.system = component("same", step_seconds=0.01, down_bandwidth=125e3, up_bandwidth=125e3, latency=0.02)
    if method != "fp8":
        in_float32(config)
    graph = component(topology)
    if method == "choco":
        config.uplink = component("topk", share=0.05)
        config.algorithm = component("choco", topology=graph, gamma=0.3)
    else:
        config.algorithm = component("dfedavg", topology=graph)
    return config
