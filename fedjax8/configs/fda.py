"""Federated dynamic averaging and its baselines: LeNet-5 on MNIST, batch 32, after the paper's Table 1.

    python -m fedjax8.train --config=fda:mnist,lenet5,linear --data_dir=DIR
    python -m fedjax8.train --config=fda:mnist,lenet5,sketch,sorted60 --config.algorithm.theta=3 \\
        --config.algorithm.workers=10 --data_dir=DIR

The argument is DATA,MODEL,STRATEGY[,SPLIT]: data `mnist` (divided by 255, as there), `mnist_standardized` or `cifar10`;
model `lenet5`, `vgg16_star`, `densenet121`, `densenet201`; strategy `linear`, `sketch`, `naive`, `gm`, `exact`,
`synchronous`, `local_sgd` (averages once an epoch), `fedadam`, `fedavgm`, `fedavg`; split `iid`, `sorted60`, `label0`,
`label8`. `workers` is the number of clients, all of which take part; one round is one epoch of their data, after which
the mean of their models is evaluated.

Optimizers, thresholds and splits are those of the paper and its authors' code (Theologitis et al., arXiv 2405.20988;
configs of FedAdam and FedAvgM: Keras's defaults, as there). docs/studies/fda.md has results.
"""

from typing import Any

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError

ADAM = {"learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-7}
NESTEROV = {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}
LENET5 = component("lenet5", activation="tanh", pool="avg", kernel_init="glorot_uniform")
DATA: dict[str, dict[str, Any]] = {
    "mnist": {"name": "mnist", "standardize": False},
    "mnist_standardized": {"name": "mnist"},
    "cifar10": {"name": "cifar10"},
}
MODELS = {
    "lenet5": (1.5, "adam", LENET5),
    "vgg16_star": (50.0, "adam", component("vgg16_star")),
    "densenet121": (300.0, "sgd", component("densenet121")),
    "densenet201": (700.0, "sgd", component("densenet201")),
}
"""Theta of the balanced setting of the paper's Fig. 9, the workers' optimizer, the model."""
MONITORED = ("linear", "sketch", "naive", "gm", "exact", "synchronous")
SPLITS: dict[str, dict[str, Any]] = {
    "iid": {"name": "iid"},
    "sorted60": {"name": "sorted_share", "share": 0.6},
    "label0": {"name": "label_first", "label": 0},
    "label8": {"name": "label_first", "label": 8},
}


def get_config(argument: str = "mnist,lenet5,linear") -> ConfigDict:
    """The cell DATA,MODEL,STRATEGY[,SPLIT]."""
    words = argument.split(",")
    if not 3 <= len(words) <= 4:
        raise UserError(f"--config=fda: give DATA,MODEL,STRATEGY[,SPLIT]; got {argument!r}")
    data, model, strategy, split = words if len(words) == 4 else [*words, "iid"]
    allowed = {
        "data": (data, tuple(DATA)),
        "model": (model, tuple(MODELS)),
        "strategy": (strategy, (*MONITORED, "local_sgd", "fedadam", "fedavgm", "fedavg")),
        "split": (split, tuple(SPLITS)),
    }
    for what, (given, known) in allowed.items():
        if given not in known:
            raise UserError(f"--config=fda: {what} must be one of {', '.join(known)}; got {given!r}")
    theta, optimizer, network = MODELS[model]
    config = in_float32(base_config())
    config.data, config.model = component(**DATA[data]), network
    config.partition = component(**SPLITS[split])
    config.rounds, config.eval_every = 100, 1
    config.client.batch_size, config.client.epochs = 32, 1
    config.client.weight_decay = 2e-4 if model.startswith("densenet") else 0.0  # gradient of an L2 penalty of 1e-4
    config.client.optimizer = component("adam", **ADAM) if optimizer == "adam" else component("sgd", **NESTEROV)
    if strategy in MONITORED:
        config.algorithm = component("fda", monitor=component(strategy), theta=theta, workers=5)
    elif strategy == "local_sgd":
        config.algorithm = component("fda", monitor=component("periodic", period=375), theta=theta, workers=5)
    elif strategy == "fedadam":
        config.client.optimizer = component("sgd", learning_rate=0.01)
        config.algorithm = component("fedopt", server_optimizer=component("adam", **ADAM), weighting="uniform")
    elif strategy == "fedavgm":
        config.client.optimizer = component("sgd", learning_rate=0.0316)
        momentum = component("sgd", learning_rate=0.316, momentum=0.9)
        config.algorithm = component("fedopt", server_optimizer=momentum, weighting="uniform")
    else:
        config.algorithm = component("fedavg", weighting="uniform")
    if strategy in (*MONITORED, "local_sgd"):
        config.num_clients = config.algorithm.get_ref("workers")
        config.cohort_size = config.algorithm.get_ref("workers")
    else:
        config.num_clients, config.cohort_size = 5, 5
    return config
