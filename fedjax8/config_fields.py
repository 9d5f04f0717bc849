"""Every field of a config, declared once: default, help, limits, choices, and the package of its components.

`config.base_config`, `config.LIMITS`, `config.CHOICES`, the help of `train` and `components.SEAMS` follow from it.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from fedjax8.numerics import formats

LARGEST_SEED = 2**32 - 1
"""Beyond it two seeds could give the same random key."""
LARGEST_COUNT = 2**31 - 1
"""Rounds, steps and clients are counted in int32 on the devices."""
LARGEST_BATCH = 2**30
"""So that a batch more than a client's rows can be counted too."""
LARGEST_NUMBER = float(np.finfo(np.float32).max)
MIXED = "mixed"
"""As `config.format`: each part that takes a format is given its own."""


def component(name: str, **settings: Any) -> ConfigDict:
    """A component's config: its name and the settings that differ from its factory's defaults."""
    return ConfigDict({"name": name, **settings}, convert_dict=False)


def is_component(value: Any) -> bool:
    """Whether a config value is a component."""
    return isinstance(value, ConfigDict) and "name" in value


class Field(NamedTuple):
    """One field of a config."""

    default: Any
    """A plain value, a tuple, or a `component`."""
    help: str
    limits: tuple[float, float] | None = None
    """Least and largest value of a number."""
    setting_limits: Mapping[str, tuple[float, float]] = MappingProxyType({})
    """Likewise of settings of a component."""
    choices: tuple[str, ...] | None = None
    """Allowed values of a text."""
    package: str | None = None
    """Package of a component, or of a tuple of them, below `fedjax8`; `components.KINDS` has the type of its
    objects."""


FIELDS: dict[str, Field] = {
    "seed": Field(0, "of initialization, split, cohorts and training; same seed, same run", limits=(0, LARGEST_SEED)),
    "split_seed": Field(
        -1,
        "of the split over clients, the validation part and dealt held-out rows, so that runs of several seeds share "
        "one split; -1: the run's seed",
        limits=(-1, LARGEST_SEED),
    ),
    "rounds": Field(60, "rounds to run", limits=(1, LARGEST_COUNT)),
    "eval_every": Field(5, "rounds between evaluations on the test set", limits=(1, LARGEST_COUNT)),
    "checkpoint_every": Field(
        0, "rounds between checkpoints; 0 for checkpoints by time alone", limits=(0, LARGEST_COUNT)
    ),
    "checkpoint_seconds": Field(
        60.0, "seconds between checkpoints, and one at the end; 0 for none by time", limits=(0.0, LARGEST_NUMBER)
    ),
    "num_clients": Field(50, "registered clients; 0 for as many as the data names", limits=(0, LARGEST_COUNT)),
    "cohort_size": Field(10, "clients a round, drawn by the participation", limits=(1, LARGEST_COUNT)),
    "data": Field(component("digits"), "source of rows: a file in fedjax8/data/sources", package="data.sources"),
    "partition": Field(
        component("dirichlet", concentration=0.3),
        "rows to clients: a file in fedjax8/data/partitions",
        package="data.partitions",
    ),
    "validation": Field(
        0.0, "share of the training rows held out of training, for stopping and choosing; 0 for none", limits=(0.0, 0.9)
    ),
    "validation_of": Field(
        "rows", "units held out: rows (of each client), or clients (with all their rows)", choices=("rows", "clients")
    ),
    "input_mean": Field((), "constants in place of the data set's mean, one or one a channel; of x / 255 for images"),
    "input_std": Field((), "likewise in place of its deviation"),
    "augment": Field((), "random image changes while training, such as ('crop', 'flip')"),
    "task": Field(
        component("classification"),
        "loss, metrics and kind of targets: a file in fedjax8/tasks; other metrics as task.metrics=macro_f1,accuracy, "
        "the first of which is the main one",
        package="tasks",
    ),
    "model": Field(component("mlp", hidden=(128,)), "a file in fedjax8/models", package="models"),
    "init_from": Field(
        "", "start from the model of a run, runs/a or runs/a@ROUND, or of a safetensors file; empty for a new one"
    ),
    "format": Field(
        formats.DEFAULT,
        "8-bit grid of weights, inputs and messages: e4m3fn, e4m3fnuz, e5m2; mixed: each part names its own",
        choices=(*formats.FORMATS, MIXED),
    ),
    "format_rules": Field(
        (), "another format, or float32, for layers by pattern: Dense_0=float32,*/mlp/*=e5m2; first match wins"
    ),
    "adapter": Field(component("qat"), "changes the model: a file in fedjax8/adapters", package="adapters"),
    "client.optimizer": Field(
        component("sgd", learning_rate=0.1),
        "of local training: any of optax; its learning_rate may be a schedule of optax, counted in rounds",
        setting_limits={"learning_rate": (0.0, LARGEST_NUMBER)},
        package="optimizers",
    ),
    "client.batch_size": Field(10, "examples a local step", limits=(1, LARGEST_BATCH)),
    "client.epochs": Field(2, "passes over its rows that a client makes a round", limits=(1, LARGEST_COUNT)),
    "client.steps": Field(0, "local steps a round, the same for every client; 0: by epochs", limits=(0, LARGEST_COUNT)),
    "client.weight_decay": Field(
        0.0, "of kernels, in front of the optimizer; biases, norms and clips have none", limits=(0.0, LARGEST_NUMBER)
    ),
    "client.proximal": Field(
        0.0, "mu of a pull to the model received, added to every gradient; 0 for none", limits=(0.0, LARGEST_NUMBER)
    ),
    "client.keep_optimizer": Field(False, "clients keep their optimizer's state from round to round"),
    "privacy": Field(
        component("none"), "protection of the clients' examples: a file in fedjax8/privacy", package="privacy"
    ),
    "algorithm": Field(component("fedavg"), "a file in fedjax8/algorithms", package="algorithms"),
    "attack": Field(component("none"), "Byzantine clients: a file in fedjax8/attacks", package="attacks"),
    "dropout": Field(component("none"), "dropouts and stragglers: a file in fedjax8/dropouts", package="dropouts"),
    "participation": Field(
        component("uniform"), "selection of clients: a file in fedjax8/participation", package="participation"
    ),
    "system": Field(
        component("none"),
        "speeds of devices and links, by which seconds are simulated: a file in fedjax8/systems",
        package="systems",
    ),
    "uplink": Field(component("fp8"), "codec of clients' messages: a file in fedjax8/codecs", package="codecs"),
    "downlink": Field(component("fp8"), "codec of the server's messages", package="codecs"),
    "executor": Field(component("auto"), "maps clients over devices: a file in fedjax8/executors", package="executors"),
    "evaluate_clients.every": Field(
        0,
        "rounds between evaluations of clients' own models on their held-out rows; 0: never",
        limits=(0, LARGEST_COUNT),
    ),
    "evaluate_clients.clients": Field(1000, "at most so many of them, evenly spaced", limits=(1, LARGEST_COUNT)),
    "evaluate_clients.fine_tune_steps": Field(0, "local steps before, forgotten after", limits=(0, LARGEST_COUNT)),
    "callbacks": Field(
        (),
        "decisions by the run's metrics: names of files in fedjax8/callbacks with commas, such as "
        "early_stopping,best_checkpoint; their settings as callbacks.0.patience",
        package="callbacks",
    ),
    "rounds_per_call": Field(
        0, "most rounds run as one dispatch; 0 for as many as are useful", limits=(0, LARGEST_COUNT)
    ),
    "feed": Field(
        "auto",
        "feed of rows to the device: resident (all at once), streamed (each call's own), auto (by size)",
        choices=("auto", "resident", "streamed"),
    ),
    "on_nan": Field(
        "drop",
        "contributions that are not finite: drop (excluded and counted) or error (the run ends)",
        choices=("drop", "error"),
    ),
}
"""By dotted name."""
