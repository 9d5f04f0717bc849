"""Words of other frameworks, and what they are called here."""

from collections.abc import Iterable

from fedjax8.lookup import suggest

FIELDS = {
    "strategy": "algorithm",
    "aggregator": "algorithm.aggregate",
    "aggregation": "algorithm.aggregate",
    "server_optimizer": "algorithm.server_optimizer",
    "server_lr": "algorithm.server_optimizer.learning_rate",
    "server_learning_rate": "algorithm.server_optimizer.learning_rate",
    "num_supernodes": "num_clients",
    "num_users": "num_clients",
    "n_clients": "num_clients",
    "client_num_in_total": "num_clients",
    "population": "num_clients",
    "fraction_fit": "cohort_size",
    "fraction_train": "cohort_size",
    "min_fit_clients": "cohort_size",
    "clients_per_round": "cohort_size",
    "client_num_per_round": "cohort_size",
    "num_round": "rounds",
    "num_rounds": "rounds",
    "num_server_rounds": "rounds",
    "comm_round": "rounds",
    "global_epochs": "rounds",
    "local_epochs": "client.epochs",
    "epochs": "client.epochs",
    "num_epochs": "client.epochs",
    "local_steps": "client.steps",
    "lr": "client.optimizer.learning_rate",
    "learning_rate": "client.optimizer.learning_rate",
    "client_lr": "client.optimizer.learning_rate",
    "optimizer": "client.optimizer",
    "client_optimizer": "client.optimizer",
    "momentum": "client.optimizer.momentum",
    "batch_size": "client.batch_size",
    "bs": "client.batch_size",
    "mu": "client.proximal",
    "proximal_mu": "client.proximal",
    "wd": "client.weight_decay",
    "dataset": "data",
    "partitioner": "partition",
    "sampler": "participation",
    "client_selection": "participation",
    "selection": "participation",
    "quantization": "uplink",
    "codec": "uplink",
    "compressor": "uplink",
    "compression": "uplink",
    "mod": "uplink",
    "dp": "privacy",
    "stragglers": "dropout",
    "byzantine": "attack",
    "network": "model",
    "arch": "model",
    "frequency_of_the_test": "eval_every",
    "test_every": "eval_every",
    "random_seed": "seed",
    "buffer_size": "cohort_size",
    "concurrency": "participation.concurrency",
    "max_concurrency": "participation.concurrency",
    "staleness": "participation.staleness",
    "bandwidth": "system",
    "device_trace": "system",
    "availability": "system",
    "clock": "system",
}
"""Field of a config, by the word."""
NOTES = dict.fromkeys(
    ("fraction_fit", "fraction_train"), "It is a number of clients: the fraction times --config.num_clients."
)
"""Remarks on words whose values are of another kind than ours."""

_FEDOPT = "fedopt with --config.algorithm.server_optimizer.name="
_MEAN = "fedavg with --config.algorithm.aggregate.name="
COMPONENTS = {
    "algorithms": {
        "fedavgm": f"{_FEDOPT}fedavgm",
        "fedadam": f"{_FEDOPT}fedadam",
        "fedyogi": f"{_FEDOPT}fedyogi",
        "fedadagrad": f"{_FEDOPT}fedadagrad",
        "fedsgd": "fedavg with --config.client.steps=1",
        "fedmedian": f"{_MEAN}median",
        "fedtrimmedavg": f"{_MEAN}trimmed_mean",
        "krum": f"{_MEAN}krum",
        "multikrum": f"{_MEAN}krum",
        "qffedavg": "qfedavg",
        "qffl": "qfedavg",
        "afl": "agnostic",
        "local": "local_only",
        "sgd": "centralized",
    },
    "codecs": {
        "int8": "uniform with bits=8",
        "int4": "uniform with bits=4",
        "qsgd": "uniform",
        "quantize": "uniform or fp8",
        "quantization": "uniform or fp8",
        "signsgd": "sign",
        "randommask": "randomk",
        "ef": "error_feedback",
    },
    "partitions": {
        "lda": "dirichlet",
        "noniid": "dirichlet",
        "hetero": "dirichlet",
        "homo": "iid",
        "pathological": "shards",
        "natural": "by_key",
    },
    "participation": {
        "random": "uniform",
        "poc": "power_of_choice",
        "powd": "power_of_choice",
        "fedbuff": "buffered",
        "fedasync": "asynchronous",
        "async": "asynchronous",
        "flanp": "stages",
    },
    "models": {
        "resnet": "resnet18 or resnet20",
        "lstm": "char_lstm",
        "transformer": "text_encoder, gpt or vit",
        "bert": "text_encoder",
        "lenet": "lenet5",
    },
    "privacy": {"dpsgd": "dp_sgd"},
    "aggregators": {"multikrum": "krum", "rfa": "geometric_median", "average": "mean"},
}
"""By kind: our component, by the word in lower case without dashes and underscores."""


def _plain(word: str) -> str:
    return word.lower().replace("-", "_")


def field_of(word: str, fields: Iterable[str]) -> str | None:
    """The config field that a word means: a field of that name or whose last part it is, or one by the table.

    >>> field_of("epochs", ["rounds", "client.epochs"]), field_of("strategy", ["algorithm"]), field_of("x", ["rounds"])
    ('client.epochs', 'algorithm', None)
    """
    word, known = _plain(word), list(fields)
    if word in known:
        return word
    if word in FIELDS:
        return FIELDS[word]
    ending = [name for name in known if name.rpartition(".")[2] == word]
    return ending[0] if len(ending) == 1 else None


def meant_component(kind: str, name: str, allowed: Iterable[str]) -> str:
    """`; here it is ...` for a component that other frameworks call so, or else `; did you mean ...?` for the nearest
    allowed name; empty if none is near.

    >>> meant_component("codecs", "QSGD", ["uniform"])
    '; here it is uniform'
    """
    ours = COMPONENTS.get(kind, {}).get(_plain(name).replace("_", ""))
    return f"; here it is {ours}" if ours else suggest(name, allowed)
