"""FedCode and the FedAvg that it is compared with: 10 clients, all of them in each of 100 rounds.

    python -m fedjax8.train --config=fedcode:cifar10 --data_dir=DIR --workdir=RUN
    python -m fedjax8.train --config=fedcode:fashion_mnist,dirichlet,stagger --data_dir=DIR

    data     cifar10 (ResNet-20, crops and flips)      fashion_mnist (LeNet-5)
    split    iid      dirichlet (concentration 2)
    method   fedcode  stagger (whole models from some clients in every round)      fedavg

Settings are those of the authors' code (of Khalilian et al., arXiv 2311.09270): 4 local epochs of batch 128, Adam 1e-3
anew in every round, 64 clusters, codebooks from round 3 on, whole models down every 5th round and up every 2nd. Where
this differs: GroupNorm in the place of BatchNorm, clients of equal size, and the Dirichlet split draws proportions for
each client and not for each class. Fashion-MNIST and LeNet-5 are this project's choice.

Bytes: ResNet-20 sends 14,818,516 per client, FedAvg 215,777,600, 14.56 times as many; the study of codecs is in
docs/studies/codecs.md. Published averages over data sets: 12.2 times at 1.3 % lower accuracy, not IID 12.7 and 2.0 %.
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError
from fedjax8.lookup import suggest

WORDS = {
    "data": ("cifar10", "fashion_mnist"),
    "split": ("iid", "dirichlet"),
    "method": ("fedcode", "stagger", "fedavg"),
}


def get_config(argument: str = "cifar10") -> ConfigDict:
    """The settings of `data[,split[,method]]`."""
    given = [word.strip() for word in argument.split(",")]
    if len(given) > len(WORDS):
        raise UserError(f"--config=fedcode: give data[,split[,method]]; got {argument!r}")
    words = given + [allowed[0] for allowed in list(WORDS.values())[len(given) :]]
    for (what, allowed), word in zip(WORDS.items(), words, strict=True):
        if word not in allowed:
            raise UserError(f"no {what} {word!r} here; allowed are {', '.join(allowed)}{suggest(word, allowed)}")
    data, split, method = words
    config = in_float32(base_config())
    config.data, config.model = component(data), component("resnet20" if data == "cifar10" else "lenet5")
    config.augment = ("crop", "flip") if data == "cifar10" else ()
    config.partition = component("iid") if split == "iid" else component("dirichlet", concentration=2.0)
    config.num_clients, config.cohort_size, config.rounds = 10, 10, 100
    config.client.batch_size, config.client.epochs = 128, 4
    config.client.optimizer = component("adam", learning_rate=1e-3)
    if method == "fedcode":
        config.algorithm = component("fedcode")
    elif method == "stagger":
        config.algorithm = component("fedcode", stagger=True)
    return config
