"""Federated fine-tuning of a little of a pre-trained model: FedPEFT's settings, and a small transformer for one core.

    python scripts/pretrain.py --out=pretrained.safetensors --data_dir=DIR
    python -m fedjax8.train --config=fedpeft:lora --data_dir=DIR
    python -m fedjax8.train --config=fedpeft:bias,cifar100,dp --data_dir=DIR \\
        --config.adapter.adapters.0.file=vit_base_patch16_224.safetensors

The argument is words in any order, at most one of each line; the first of a line is meant where none is given.

    method   lora      low-rank changes of queries and values (rank 8; small model: 2), and the head, as with all others
             bias      all leaves named bias
             full      everything
             head      nothing else
             adapter   a bottleneck behind every MLP, the same for all blocks (an eighth of the width)
             prompt    10 tokens (small model: 4) of their own for every block
    data     small     6400 images of MNIST and a transformer of 213,706 parameters from scripts/pretrain.py
             cifar100, resisc45 (a folder NWPU-RESISC45), pcam (20,000 images): ViT-B/16, in a file of timm's layout
    split    homogeneous    dirichlet0.1    dirichlet0.5
             where none is given, small is homogeneous, pcam dirichlet0.5 and the others dirichlet0.1
    little   1000 images in all (small: 640), drawn before they are split; more by --config.data.rows
    dp       dp (epsilon 5), dp10 (epsilon 10)
    fp8      8-bit messages: clients send their update, the server its model

Settings of the authors' code (Sun et al., arXiv 2210.01708, v1 and v2), for cifar100, resisc45 and pcam: 64 clients, 8
a round, 50 rounds, 10 epochs of batch 64, Nesterov SGD with momentum 0.9 and weight decay 1e-4, and the step size of
each method; with dp clipping to 1 and delta 1e-3. LoRA is not among its methods: rank, alpha and step size are this
project's choice, and so is everything about `small`. Where this differs: biases do not decay, no client of a Dirichlet
split stops at the mean size, means and deviations are those of the training set, and `dp` is DP-SGD with its accountant
(theirs is `privacy.noisy_sgd`, without a guarantee). Measured: docs/studies/fedpeft.md.
"""

from ml_collections import ConfigDict

from fedjax8.config import base_config, component, in_float32
from fedjax8.errors import UserError
from fedjax8.lookup import suggest

RATES = {
    "lora": (5e-3, 5e-3, 1e-3),
    "bias": (1e-2, 5e-3, 5e-3),
    "full": (1e-3, 1e-3, 5e-4),
    "head": (5e-3, 5e-3, 1e-3),
    "adapter": (5e-3, 5e-3, 1e-3),
    "prompt": (1e-2, 1e-2, 5e-3),
}
"""Step sizes: of cifar100 and pcam, of resisc45, with dp. The authors' but for lora."""
SMALL_RATES = {"lora": 0.03, "bias": 0.1, "full": 0.03, "head": 0.1, "adapter": 0.03, "prompt": 0.1}
"""Of the small model, with and without dp: see docs/studies/fedpeft.md."""
DATA = ("small", "cifar100", "resisc45", "pcam")
SPLITS = {"homogeneous": None, "dirichlet0.1": 0.1, "dirichlet0.5": 0.5}
LITTLE, FP8 = "little", "fp8"
EPSILONS = {"dp": 5.0, "dp10": 10.0}
GROUPS = {"method": tuple(RATES), "data": DATA, "split": tuple(SPLITS), "little": (LITTLE,), "dp": tuple(EPSILONS)}
GROUPS["fp8"] = (FP8,)
FILE = "pretrained.safetensors"


def sort_words(argument: str) -> dict[str, str]:
    """The word given of each group; UserError for an unknown one, or two of a group."""
    known = [word for group in GROUPS.values() for word in group]
    found: dict[str, str] = {}
    for word in filter(None, (word.strip() for word in argument.split(","))):
        if word not in known:
            raise UserError(f"--config=fedpeft: no {word!r}; allowed are {', '.join(known)}{suggest(word, known)}")
        group = next(name for name, words in GROUPS.items() if word in words)
        if group in found:
            raise UserError(f"--config=fedpeft: {found[group]!r} and {word!r} are both a {group}; give one")
        found[group] = word
    return found


def data_of(data: str, little: bool) -> ConfigDict:
    """The source."""
    if data == "small":
        return component("part", of="mnist", rows=640 if little else 6400, test_rows=2000)
    if data == "resisc45":
        if little:
            raise UserError("--config=fedpeft: little goes with small, cifar100 and pcam")
        return component("image_folder", folder="NWPU-RESISC45", size=224)
    if data == "pcam":
        return component("pcam", rows=1000 if little else 20_000)
    return component("part", of="cifar100", rows=1000) if little else component("cifar100")


def adapter_of(method: str, small: bool) -> ConfigDict:
    """The adapter that loads the file, and the one that trains part of it."""
    file = {"file": FILE} if small else {"file": FILE, "names": "timm_vit"}
    methods = {
        "lora": component("lora", rank=2 if small else 8, alpha=16.0, targets=("*/query", "*/value")),
        "bias": component("subset", train="bias"),
        "full": component("subset", train="full"),
        "head": component("subset", train="head"),
        "adapter": component("bottleneck", width=8 if small else 96, shared=True),
        "prompt": component("prompt", tokens=4 if small else 10, patch_values=196 if small else 768),
    }
    return component("chain", adapters=(component("pretrained", head="new", **file), methods[method]))


def get_config(argument: str = "lora") -> ConfigDict:
    """The settings that the words of the argument name."""
    words = sort_words(argument)
    method, data = words.get("method", "lora"), words.get("data", "small")
    small, private = data == "small", words.get("dp")
    config = in_float32(base_config())
    config.data = data_of(data, "little" in words)
    config.adapter = adapter_of(method, small)
    concentration = SPLITS[words["split"]] if "split" in words else {"small": None, "pcam": 0.5}.get(data, 0.1)
    config.partition = component("iid")
    if concentration is not None:
        config.partition = component(
            "dirichlet", concentration=concentration, balanced=False, min_size=1 if small else 10
        )
    config.num_clients, config.cohort_size = 64, 8
    if small:
        config.model = component("vit", patch_size=14, image_size=28, width=64, depth=4, heads=4)
        config.rounds, config.eval_every = 30, 10
        config.client.batch_size, config.client.epochs = 20, 1
        rate = SMALL_RATES[method]
    else:
        config.model = component("vit", size="base", resize=data != "resisc45")
        config.augment = ("crop", "flip") if data == "cifar100" else ("flip",)
        config.rounds, config.eval_every = 50, 1
        config.client.batch_size, config.client.epochs = 64, 10
        rate = RATES[method][2 if private else 1 if data == "resisc45" else 0]
    config.client.optimizer = component("sgd", learning_rate=rate, momentum=0.9, nesterov=True)
    config.client.weight_decay = 1e-4
    if private:
        config.privacy = component("dp_sgd", clip=1.0, target_epsilon=EPSILONS[private], delta=1e-3)
    if "fp8" in words:
        config.algorithm = component("fedavg", payload="update")
        config.uplink, config.downlink = component("fp8", clip="max"), component("fp8", clip="max")
    return config
