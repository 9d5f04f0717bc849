"""FedDyn: dynamic regularization of the clients' objectives, so that their optima agree (Acar et al. 2021, arXiv
2111.04263, algorithm 1).

    client i minimizes f_i(y) + alpha <h_i, y - x> + alpha/2 ||y - x||^2,  steps along g_i(y) + alpha (h_i + y - x)
    h_i <- h_i + (y_i - x)
    x   <- mean_S y_i + mean_K h_i

S are the m clients of the round, K all clients. h_i stays with client i, starts at 0, and is -grad f_i(y_i) / alpha
once solves are exact. The server keeps the mean of all h_i alone: it grows by m/K times the mean update. Means are
uniform, as in the paper; in the authors' code alpha is divided by a client's share of the examples, here it is not.

There are two models, the mean of the clients' and x, which is sent and, by default, evaluated. Traffic: as FedAvg. With
a lossy codec the server's mean of h_i is off by the codec's error: use an unbiased one.
"""

import math

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import client_weight
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, check_choice, from_parts
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining, PyTree, Variables

EVALUATED = ("sent", "average")


@checked
def feddyn(
    local: LocalTraining,
    alpha: float = 0.01,
    *,
    evaluated: str = "sent",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated learning with dynamic regularization.

    Args:
      local: the clients' local training.
      alpha: strength of the regularizer, above 0; 0.01 in the authors' examples.
      evaluated: which model is the result, x as it is `sent`, or the `average` of the clients' models.
      model_state, aggregate: see `parts.from_parts`.
    """
    check_choice("evaluated", evaluated, EVALUATED)
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be a number above 0, got {alpha}")

    def zeros(variables: Variables) -> PyTree:
        return jax.tree.map(jnp.zeros_like, variables.params)

    def init(variables: Variables) -> dict[str, PyTree]:
        average = {"average": variables.params} if evaluated == "average" else {}
        return {"offset": zeros(variables)} | average

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        def bend(gradients, params, batch, key):
            return jax.tree.map(lambda g, h, y, x: g + alpha * (h + y - x), gradients, memory, params, start.params)

        out = local.train(start, rows, key, adjust=bend)
        update = trees.subtract(out.variables.params, start.params)
        weight, own = client_weight("uniform", rows.size), trees.add(memory, update)
        return ClientOutput({"update": update}, weight, out.variables, own, out.report, out.optimizer)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        update, share = mean.tree["update"], mean.weight / mean.num_clients  # weights are 1, or 0 without examples
        average = trees.add(state.variables.params, update)
        offset = trees.add(state.memory["offset"], trees.scale(share, update))
        memory = {"offset": offset} | ({"average": average} if evaluated == "average" else {})
        return ServerOutput(local.model.project(trees.add(average, offset)), memory)

    made = from_parts(
        local,
        client=client,
        server=server,
        init=init,
        init_client=zeros,
        model_state=model_state,
        aggregate=aggregate,
    )
    if evaluated == "average":
        return made._replace(
            variables=lambda state: Variables(local.model.project(state.memory["average"]), state.variables.state)
        )
    return made


EXAMPLES = ({}, {"alpha": 0.1, "evaluated": "average"})
