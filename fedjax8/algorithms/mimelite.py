"""MimeLite: Mime without the correction of each step, in one exchange (Karimireddy et al. 2020, arXiv 2008.03606,
algorithm 1).

    y   <- y - eta U(g_B(y), s)
    x   <- x + eta_s sum_i p_i (y_i - x);     s <- the state of U after sum_i p_i grad f_i(x)

Notation as in `mime`. Traffic: x and s down; an update and a full gradient up, in one message.
"""

import optax

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.mime import GRADIENT, after_round, begin, direction, momentum
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, check_choice, from_parts
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining


@checked
def mimelite(
    local: LocalTraining,
    base_optimizer: optax.GradientTransformation | None = None,
    *,
    server_learning_rate: float = 1.0,
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Clients that step by a central optimizer's state; arguments and errors as of `mime`."""
    check_choice("weighting", weighting, WEIGHTINGS)
    base = momentum() if base_optimizer is None else base_optimizer

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        def mimicked(gradients, params, batch, key):
            return direction(base, gradients, extra["optimizer"], params)

        out = local.train(start, rows, key, adjust=mimicked)
        sent = {
            "update": trees.subtract(out.variables.params, start.params),
            GRADIENT: local.full_gradient(start, rows, key),
        }
        return ClientOutput(sent, client_weight(weighting, rows.size), out.variables, memory, out.report, out.optimizer)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        return after_round(local, base, state, mean.tree["update"], mean.tree[GRADIENT], server_learning_rate)

    return from_parts(
        local,
        client=client,
        server=server,
        init=lambda variables: begin(local, base, variables),
        extra=lambda state: {"optimizer": state.memory},
        model_state=model_state,
        aggregate=aggregate,
    )


EXAMPLES = ({}, {"base_optimizer": optax.adam(1.0), "server_learning_rate": 0.5})
