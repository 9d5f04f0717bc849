"""Personalization: a model for each client, measured on its own held-out rows.

    python -m fedjax8.train --config=personal:cifar10,fedrep --data_dir=DIR --workdir=runs/cifar10-fedrep
    python -m fedjax8.compare runs/cifar10-*

The argument is DATA,METHOD: data `cifar10` (100 clients with two labels each, by shards) or `femnist` (`femnist.npz`, a
client for each writer); method `fedavg`, `fedrep`, `fedper`, `ditto`, `apfl`, `pfedme`, `ifca`, `local_only` or
`centralized`, and for `cifar10` also `dfedavg` and `dfedalt`, in which all 100 clients are workers on an exponential
graph and pass once over their rows, twice in `dfedalt`. LeNet-5 in float32, nothing encoded, 10 clients a round of
CIFAR-10 and 20 of FEMNIST; the head is the last layer. Every method passes five times over a client's rows in a round:
FedRep four times for the head and once for the body; Ditto and APFL five times for each of two models. Look at
`personal_accuracy`, the mean over clients; docs/studies/personal.md has results.
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError

PASSES = 5
METHODS = {
    "fedavg": component("fedavg"),
    "fedrep": component("fedrep", head_epochs=PASSES - 1),
    "fedper": component("fedper"),
    "ditto": component("ditto", pull=0.1),
    "apfl": component("apfl", alpha=0.5),
    "pfedme": component("pfedme", pull=1.0, rate=1.0, inner_steps=25),
    "ifca": component("ifca", clusters=5),
    "local_only": component("local_only"),
    "centralized": component("centralized"),
}
GRAPHS = {
    "dfedavg": component("dfedavg", topology=component("exponential")),
    "dfedalt": component("dfedalt", topology=component("exponential"), head_epochs=1),
}
"""Methods without a server, for CIFAR-10."""
DATA = ("cifar10", "femnist")


def get_config(argument: str = "cifar10,fedrep") -> ConfigDict:
    """The run DATA,METHOD."""
    data, _, method = argument.partition(",")
    methods = METHODS | (GRAPHS if data == "cifar10" else {})
    if data not in DATA or method not in methods:
        raise UserError(
            f"--config=personal: give DATA,METHOD, data one of {', '.join(DATA)}, method one of "
            f"{', '.join(methods)}; got {argument!r}"
        )
    config = in_float32(base_config())
    if data == "cifar10":
        config.data, config.num_clients, config.cohort_size = component("cifar10"), 100, 10
        config.partition = component("shards", shards_per_client=2)
    else:
        config.data, config.num_clients, config.cohort_size = component("npz", file="femnist"), 0, 20
        config.partition = component("by_key")
    config.model = component("lenet5")
    config.rounds, config.eval_every = 25, 5
    config.evaluate_clients.every = 5
    config.client.batch_size = 20
    config.client.epochs = 1 if method == "fedrep" or method in GRAPHS else PASSES
    config.client.optimizer = component("sgd", learning_rate=0.05)
    config.algorithm = methods[method]
    if method in GRAPHS:
        config.cohort_size = config.num_clients
    return config
