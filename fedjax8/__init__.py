"""fedjax8: federated learning in 8 bits, simulated in JAX, with every byte counted.

A run is built from small pure parts:

    model = adapters.qat(models.mlp((128,)))                      the model, trained on an FP8 grid
    local = local_training(model, optimizer, plan)                one client's training
    algorithm = algorithms.fedavg(local)                          one round
    run = simulate(algorithm, clients, uplink=codecs.fp8(), ...)   the run, with its clients and messages

`python -m fedjax8.train` does the same from a config and flags. Names are loaded when first used, so reading the
files of a run does not have to start JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fedjax8.version import __version__

if TYPE_CHECKING:
    from fedjax8 import (
        adapters,
        algorithms,
        attacks,
        callbacks,
        codecs,
        data,
        dropouts,
        executors,
        models,
        numerics,
        participation,
        privacy,
        results,
        tasks,
    )
    from fedjax8.engine.simulation import simulate
    from fedjax8.experimenting import experiment
    from fedjax8.loading import load
    from fedjax8.local import local_training, proximal, scheduled

_PACKAGES = (
    "adapters",
    "algorithms",
    "attacks",
    "callbacks",
    "codecs",
    "data",
    "dropouts",
    "executors",
    "models",
    "numerics",
    "participation",
    "privacy",
    "results",
    "tasks",
)
_FUNCTIONS = {
    "experiment": "fedjax8.experimenting",
    "load": "fedjax8.loading",
    "local_training": "fedjax8.local",
    "proximal": "fedjax8.local",
    "scheduled": "fedjax8.local",
    "simulate": "fedjax8.engine.simulation",
}

__all__ = [
    "__version__",
    "adapters",
    "algorithms",
    "attacks",
    "callbacks",
    "codecs",
    "data",
    "dropouts",
    "executors",
    "experiment",
    "load",
    "local_training",
    "models",
    "numerics",
    "participation",
    "privacy",
    "proximal",
    "results",
    "scheduled",
    "simulate",
    "tasks",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"fedjax8.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'fedjax8' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
