"""SCAFFOLD: control variates correct the local steps for client drift.

Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1.

    y <- y - eta (g_i(y) - c_i + c)
    c_i+ = grad f_i(x)                     (option I)
    c_i+ = c_i - c + (x - y) / (S eta)     (option II, S the steps this client took)
    x <- x + eta_s mean(y_i - x);      c <- c + (m / K) mean(c_i+ - c_i)

Means are uniform over the m clients of the round; c_i persists on client i, all variates start at 0. Traffic: twice
FedAvg's in both directions. Encoded variates still sum to c as the server has them only up to the codec's error: use
an unbiased one.
"""

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import client_weight
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, check_choice, from_parts
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining

OPTIONS = ("I", "II")


@checked
def scaffold(
    local: LocalTraining,
    learning_rate: float,
    *,
    server_learning_rate: float = 1.0,
    option: str = "II",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Stochastic controlled averaging.

    Args:
      local: the clients' local training; its optimizer must be plain SGD with step `learning_rate`, which option II
        divides by.
      learning_rate: eta; with a local training that is `scheduled`, the optimizer's own, which the schedule multiplies.
      server_learning_rate: eta_s.
      option: `I` costs one more pass over the client's data, `II` reuses the local steps.
      model_state, aggregate: see `parts.from_parts`. An aggregator sees model and variate of a client together.
    """
    check_choice("option", option, OPTIONS)
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")

    def zeros(variables):
        return jax.tree.map(jnp.zeros_like, variables.params)

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        train_key, gradient_key = jax.random.split(key)
        common = extra["control"]

        def correct(gradients, params, batch, key):
            return jax.tree.map(lambda g, own, c: g - own + c, gradients, memory, common)

        out = local.train(start, rows, train_key, adjust=correct)
        update = trees.subtract(out.variables.params, start.params)
        if option == "I":
            control = local.full_gradient(start, rows, gradient_key)
        else:
            length = out.num_steps * (learning_rate * local.rate(rows.pool))  # length of the path at a gradient of 1
            moved = 1.0 / jnp.where(length > 0, length, 1.0)
            control = jax.tree.map(lambda own, c, u: own - c - moved * u, memory, common, update)
            control = trees.select(length > 0, control, memory)
        sent = {"update": update, "control": trees.subtract(control, memory)}
        weight = client_weight("uniform", rows.size)
        return ClientOutput(sent, weight, out.variables, control, out.report, out.optimizer)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        params = trees.add(state.variables.params, trees.scale(server_learning_rate, mean.tree["update"]))
        share = mean.weight / mean.num_clients  # weights are 1, or 0 for a client without examples
        return ServerOutput(
            local.model.project(params), trees.add(state.memory, trees.scale(share, mean.tree["control"]))
        )

    return from_parts(
        local,
        client=client,
        server=server,
        init=zeros,
        init_client=zeros,
        extra=lambda state: {"control": state.memory},
        model_state=model_state,
        aggregate=aggregate,
    )


EXAMPLES = ({"learning_rate": 0.1}, {"learning_rate": 0.1, "option": "I"})
