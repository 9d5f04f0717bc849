"""q-FedAvg: clients of high loss count more, so that the model serves all of them more equally (Li et al. 2020, "Fair
Resource Allocation in Federated Learning", arXiv 1905.10497, algorithm 2).

    F_i = f_i(x) + 1e-10,   L = 1 / eta,   u_i = L (x - y_i)
    x <- x - sum_i F_i^q u_i / sum_i h_i,      h_i = q F_i^(q-1) |u_i|^2 + L F_i^q

Both sums are divided by L here, so that with q = 0 the server takes the uniform mean of the clients' models. F_i is the
mean loss over a client's rows at the model it received, in evaluation mode. eta is the clients' rate; 1e-10 is from the
authors' code.

Traffic: as FedAvg, and 4 bytes up for h_i as float32. A client reads its rows once more for the loss.
"""

import math

import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import client_weight
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, from_parts
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining

CURVATURE = "curvature"
"""Name of h_i / L in a contribution."""
SMALLEST_LOSS = 1e-10
"""Added to losses, so that a client without any has powers of it."""


@checked
def qfedavg(
    local: LocalTraining,
    learning_rate: float,
    q: float = 0.1,
    *,
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Fair federated averaging.

    Args:
      local: the clients' local training; its optimizer must be plain SGD with step `learning_rate`. Losses must be
        from 0 up.
      learning_rate: eta; with a local training that is `scheduled`, the optimizer's own, which the schedule multiplies.
      q: exponent of the loss in a client's weight, from 0 up.
      model_state, aggregate: see `parts.from_parts`. An aggregator sees a client's update and h_i together.
    """
    if not (0 < learning_rate < math.inf and 0 <= q < math.inf):
        raise ValueError(f"learning_rate must be a number above 0 and q one from 0 up; got {learning_rate} and {q}")

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        loss = local.mean_loss(start, rows) + SMALLEST_LOSS
        out = local.train(start, rows, key)
        update = trees.subtract(out.variables.params, start.params)
        rate = learning_rate * local.rate(rows.pool)
        squared = trees.norm(update) ** 2 / jnp.where(rate > 0, rate, 1.0)
        sent = {"update": trees.scale(loss**q, update), CURVATURE: loss**q + q * loss ** (q - 1) * squared}
        report = out.report | {"start_loss": loss * (rows.size > 0)}
        weight = client_weight("uniform", rows.size)
        return ClientOutput(sent, weight, out.variables, memory, report, out.optimizer)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        curvature = mean.tree[CURVATURE]
        step = trees.scale(1.0 / jnp.where(curvature > 0, curvature, 1.0), mean.tree["update"])
        params = local.model.project(trees.add(state.variables.params, step))
        return ServerOutput(params, report={CURVATURE: curvature})

    return from_parts(
        local, client=client, server=server, model_state=model_state, aggregate=aggregate, plain=(CURVATURE,)
    )


EXAMPLES = ({"learning_rate": 0.1}, {"learning_rate": 0.1, "q": 1.0})
