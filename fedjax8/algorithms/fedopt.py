"""FedOpt: a server optimizer that takes minus the mean update as its gradient.

Reddi et al. 2021, arXiv 2003.00295, algorithm 1.

    D = sum_i p_i (y_i - x);      x <- x + server_optimizer(-D)

FedAvgM, FedAdam, FedYogi and FedAdagrad are this with the optimizers of `server_optimizers`; any optax optimizer
works.
"""

import optax

from fedjax8 import trees
from fedjax8.algorithms.fedavg import training_client
from fedjax8.algorithms.parts import Aggregate, ServerOutput, ServerState, from_parts, mean_update
from fedjax8.algorithms.server_optimizers import fedadam
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining


@checked
def fedopt(
    local: LocalTraining,
    server_optimizer: optax.GradientTransformation | None = None,
    *,
    payload: str = "update",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated optimization with `server_optimizer` (default `fedadam()`); the other arguments as in `fedavg`."""
    optimizer = fedadam() if server_optimizer is None else server_optimizer

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        params = state.variables.params
        gradient = trees.scale(-1.0, mean_update(params, mean))
        steps, memory = optimizer.update(gradient, state.memory, params)
        return ServerOutput(local.model.project(optax.apply_updates(params, steps)), memory)

    def init(variables):
        return optimizer.init(variables.params)

    client = training_client(local, payload, weighting)
    return from_parts(local, client=client, server=server, init=init, model_state=model_state, aggregate=aggregate)


EXAMPLES = ({}, {"server_optimizer": optax.sgd(1.0, momentum=0.9)}, {"payload": "params"})
