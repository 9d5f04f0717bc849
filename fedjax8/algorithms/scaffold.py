"""SCAFFOLD: control variates take client drift out of the local steps.

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
from fedjax8.algorithms.fedavg import client_weight, step_scale
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
    client_decay: float = 1.0,
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Stochastic controlled averaging.

    Args:
      local: how a client trains; its optimizer must be plain SGD with step `learning_rate`, which option II divides by.
      learning_rate: eta.
      server_learning_rate: eta_s.
      option: `I` costs one more pass over the client's data, `II` reuses the local steps.
      client_decay: factor per round on the clients' step size.
      model_state, aggregate: see `parts.from_parts`. An aggregator sees model and variate of a client together.
    """
    check_choice("option", option, OPTIONS)
    if learning_rate <= 0:
        raise ValueError(f"learning_rate must be positive, got {learning_rate}")

    def zeros(variables):
        return jax.tree.map(jnp.zeros_like, variables.params)

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        train_key, gradient_key = jax.random.split(key)
        common, factor = extra["control"], step_scale(client_decay, round_number)

        def correct(gradients, params):
            return jax.tree.map(lambda g, own, c: g - own + c, gradients, memory, common)

        out = local.train(start, rows, train_key, adjust=correct, step_scale=factor)
        update = trees.subtract(out.variables.params, start.params)
        if option == "I":
            control = local.full_gradient(start, rows, gradient_key)
        else:
            scaled = factor * rows.pool.step_scale
            moved = 1.0 / (jnp.maximum(out.num_steps, 1) * learning_rate * scaled)
            control = jax.tree.map(lambda own, c, u: own - c - moved * u, memory, common, update)
            control = trees.select(out.num_steps > 0, control, memory)
        sent = {"update": update, "control": trees.subtract(control, memory)}
        return ClientOutput(sent, client_weight("uniform", rows.size), out.variables, control, out.report)

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
