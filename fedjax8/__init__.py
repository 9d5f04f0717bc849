"""fedjax8: federated learning in 8 bits, simulated in JAX, with every byte counted.

A run is built from small pure parts:

    model = adapters.qat(models.mlp((128,)))                      what is trained, seen on an FP8 grid
    local = local_training(model, optimizer, plan)                how one client trains
    algorithm = algorithms.fedavg(local)                          what a round is
    run = simulate(model, algorithm, clients, uplink=codecs.fp8(), ...)   who takes part, and what travels

`python -m fedjax8.train` does the same from a config and flags.
"""

from fedjax8 import adapters, algorithms, codecs, cohorts, data, models, numerics
from fedjax8.data.batches import batch_plan
from fedjax8.local import local_training
from fedjax8.simulation.simulation import simulate
from fedjax8.version import __version__

__all__ = [
    "__version__",
    "adapters",
    "algorithms",
    "batch_plan",
    "codecs",
    "cohorts",
    "data",
    "local_training",
    "models",
    "numerics",
    "simulate",
]
