"""Delayed gradients: an update is used D server steps after it was computed, by layer where layers are the stages of a
pipeline.

    u_t = sum_i p_i (y_i - x_t);      x_{t+1} = x_t + eta_s u_{t-D},      u_t = 0 for t < 0

With one local step this is SGD whose gradient is D steps old. With `stages` the layers are cut in order into that many
runs of about equal numbers, and the layers of stage s of P have the delay D (P - 1 - s): in an asynchronous pipeline
without bubbles the first stage waits longest for the gradient of its own output.

This is the part of Ravnest (arXiv 2401.01728, of which the abstract and the authors' code were read) that a simulator
of models in one piece can hold: its staleness. What is not here: models cut over devices, micro-batches with stored
versions of the weights, recomputed forward passes, activations as traffic. A gradient's every layer is taken at the
same x_t, while a pipeline's layers may have moved between its forward and its backward pass. Which delay a stage has is
inferred.

On f(x) = a x^2 / 2, D = 1 and one step of rate eta: x_{t+1} = x_t - eta a x_{t-1} is stable for 0 < eta a < 1.

Traffic: as FedAvg. The server keeps D updates of each layer.
"""

import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import training_client
from fedjax8.algorithms.layers import layers_of
from fedjax8.algorithms.parts import Aggregate, ServerOutput, ServerState, from_parts, mean_update
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, Array, LocalTraining, PyTree


@checked
def delayed(
    local: LocalTraining,
    delay: int = 1,
    *,
    stages: int = 1,
    server_learning_rate: float = 1.0,
    payload: str = "update",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging with updates that are used later.

    Args:
      local: the clients' local training; one step of SGD for a delayed gradient.
      delay: D in server steps; 0 is FedAvg.
      stages: 1 gives every layer the delay D, P the stage s of P the delay D (P - 1 - s).
      server_learning_rate: eta_s.
      payload, weighting, model_state, aggregate: as in `fedavg`. Batch statistics are not delayed.

    A round without a usable contribution changes nothing, not the updates under way either.
    """
    if delay < 0 or stages < 1:
        raise ValueError(f"delay must be at least 0 and stages at least 1; got delay={delay}, stages={stages}")

    def init(variables) -> dict[str, Array]:
        delays = delays_of(variables.params, delay, stages)
        leaves = trees.named_leaves(variables.params)
        return {name: jnp.zeros((d, *leaves[name].shape), leaves[name].dtype) for name, d in delays.items() if d}

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        params, waiting = state.variables.params, state.memory
        new = mean_update(params, mean)
        due = trees.map_named(lambda name, u: waiting[name][0] if name in waiting else u, new)
        leaves = trees.named_leaves(new)
        memory = {name: jnp.concatenate([queue[1:], leaves[name][None]]) for name, queue in waiting.items()}
        stepped = trees.add(params, trees.scale(server_learning_rate, due))
        return ServerOutput(local.model.project(stepped), memory)

    client = training_client(local, payload, weighting)
    return from_parts(local, client=client, server=server, init=init, model_state=model_state, aggregate=aggregate)


def delays_of(params: PyTree, delay: int, stages: int) -> dict[str, int]:
    """Delay of each leaf by its path name. UserError if there are fewer layers than stages."""
    layers = layers_of(params)
    if len(layers) < stages:
        raise UserError(f"delayed: stages must be at most the model's {len(layers)} layers, got {stages}")
    of_layer = [delay * (stages - 1 - i * stages // len(layers)) if stages > 1 else delay for i in range(len(layers))]
    return {"/".join(map(str, path)): d for layer, d in zip(layers, of_layer, strict=True) for path in layer}


EXAMPLES = ({}, {"delay": 0}, {"stages": 2, "server_learning_rate": 0.5})
