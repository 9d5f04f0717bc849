"""The cells of a study of FP8 federated learning: data, model, split and method, each a word of the argument.

    python -m fedjax8.train --config=fp8:cifar10,lenet,dirichlet,uq --data_dir=DIR --workdir=RUN
    python -m fedjax8.train --config=fp8:cifar10,lenet,dirichlet,uq,e4m3fnuz --data_dir=DIR --workdir=RUN

    data     cifar10, cifar100                       speech (Speech Commands, 35 words)
    model    lenet, lenet5, resnet20, resnet18       matchboxnet, kwt1
    split    iid, dirichlet (concentration 0.3)      iid, speaker
    method   float32   nothing quantized, nothing encoded
             uq        FP8FedAvg-UQ: training on the FP8 grid, unbiased FP8 messages both ways
             uq_plus   FP8FedAvg-UQ+: the same with the clips of the server's model chosen to err least
             biased    the same as uq with messages rounded to nearest
             no_qat    float32 training, unbiased FP8 messages scaled to each tensor's largest weight; evaluated on the
                       FP8 grid (the `float32` view is evaluated too). Without clips to tell kernels, every array of two
                       dimensions or more is quantized: for kwt1 also class token and positions

    grid     e4m3fn    (where none is given) e4m3fn weights, inputs and messages, e5m2 gradients
             e4m3fnuz  the grid of Kuzmin et al.; gradients in float32: as measured in docs/studies/fp8.md

Which data and models Wang et al. (arXiv 2407.02610) use could not be confirmed, and none of their settings: the
following is from the closest public sources. Vision: 100 clients, 5 local epochs of batch 50, SGD 0.1, weight decay
1e-3, 1000 rounds, no augmentation (the FedDyn code); 10 clients a round and concentration 0.3 are this project's
choice. Speech: one client a speaker, AdamW 1e-3 with weight decay 0.1 (Keyword Transformer), one local epoch of batch
16, 100 speakers a round, 1000 rounds (this project's choice); an IID split has as many clients as there are speakers.
Measured results: docs/studies/fp8.md.
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError
from fedjax8.lookup import suggest

MODELS = {"lenet": "cnn", "lenet5": "lenet5", "resnet20": "resnet20", "resnet18": "resnet18"}
SPEECH_MODELS = {"matchboxnet": "matchboxnet", "kwt1": "kwt1"}
GRIDS = ("e4m3fn", "e4m3fnuz")
METHODS = ("float32", "uq", "uq_plus", "biased", "no_qat")
CELLS = {
    "cifar10": (tuple(MODELS), ("iid", "dirichlet")),
    "cifar100": (tuple(MODELS), ("iid", "dirichlet")),
    "speech": (tuple(SPEECH_MODELS), ("iid", "speaker")),
}


def choose(what: str, given: str, allowed: tuple[str, ...]) -> str:
    """`given`, or a UserError that names the allowed ones."""
    if given not in allowed:
        raise UserError(f"no {what} {given!r} here; allowed are {', '.join(allowed)}{suggest(given, allowed)}")
    return given


def vision(config: ConfigDict, data: str, model: str, split: str) -> None:
    """Data, model, split and local training of the image cells."""
    config.data, config.model = component(data), component(MODELS[model])
    config.partition = component("iid") if split == "iid" else component("dirichlet", concentration=0.3)
    config.num_clients, config.cohort_size = 100, 10
    config.client.batch_size, config.client.epochs = 50, 5
    config.client.optimizer = component("sgd", learning_rate=0.1)
    config.client.weight_decay = 1e-3


def speech(config: ConfigDict, data: str, model: str, split: str) -> None:
    """Data, model, split and local training of the keyword spotting cells."""
    features = {"kwt1": "kwt", "matchboxnet": "matchboxnet"}[model]
    config.data, config.model = component("speech_commands", features=features), component(SPEECH_MODELS[model])
    config.partition = component("iid") if split == "iid" else component("by_key")
    config.num_clients, config.cohort_size = 0, 100
    config.client.batch_size, config.client.epochs = 16, 1
    config.client.optimizer = component("adamw", learning_rate=1e-3, weight_decay=0.1)


def apply_method(config: ConfigDict, method: str) -> None:
    """Sets quantized parts and their codecs; the base config is UQ."""
    if method == "float32":
        in_float32(config)
    elif method == "uq_plus":
        config.algorithm = component("fedavg", refine=component("uq_plus"))
    elif method == "biased":
        config.uplink, config.downlink = (component("fp8", rounding="nearest") for _ in range(2))
    elif method == "no_qat":
        config.adapter = component("ptq")


def apply_grid(config: ConfigDict, grid: str) -> None:
    """The 8-bit format, where anything is quantized; the base config is e4m3fn with e5m2 gradients."""
    if grid == "e4m3fnuz" and config.uplink.name == "fp8":
        config.format = grid
        if config.adapter.name == "qat":
            config.adapter.gradients = None


def get_config(cell: str = "cifar10,lenet,dirichlet,uq") -> ConfigDict:
    """The settings of one cell, `data,model,split,method[,grid]`; shorten a run with --config.rounds=N."""
    words = [word.strip() for word in cell.split(",")]
    if len(words) not in (4, 5):
        raise UserError(f"a cell is data,model,split,method[,grid], such as cifar10,lenet,dirichlet,uq; got {cell!r}")
    data, model, split, method, grid = (*words, GRIDS[0])[:5]
    models, splits = CELLS[choose("data", data, tuple(CELLS))]
    choose("model", model, models), choose("split", split, splits), choose("method", method, METHODS)
    choose("grid", grid, GRIDS)
    config = base_config()
    config.rounds, config.eval_every = 1000, 10
    (speech if data == "speech" else vision)(config, data, model, split)
    apply_method(config, method)
    apply_grid(config, grid)
    return config
