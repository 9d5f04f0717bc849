"""FedNova: averaging of updates normalized by the length of a client's local training (Wang et al. 2020,
"Tackling the Objective Inconsistency Problem", arXiv 2007.07481, section 4).

    d_i = (y_i - x) / a_i,      x <- x + eta_s (sum_i p_i a_i) sum_i p_i d_i

a_i is the sum of the weights that the client's gradients have in its update, in units of the first step:

    plain SGD     a_i = S_i, the number of steps
    momentum rho  k <- rho k + 1,  a_i <- a_i + k             at every step
    proximal mu   a_i <- a_i (1 - eta mu) + 1                 at every step

It is found by taking the client's steps along a gradient of 1, which gives all three, both together, and Nesterov's
momentum; that is this project's way. For optimizers that are not linear in their gradients, such as adam, it is the
length of the way along a constant gradient. In the proximal case the authors' code scales by sum_i p_i S_i instead of
sum_i p_i a_i.

Traffic: as FedAvg and 4 bytes up, a_i as float32.
"""

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import Aggregate, ClientOutput, ServerOutput, ServerState, check_choice, from_parts
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.types import Aggregator, Algorithm, Array, LocalTraining, Pool

NORMALIZER = "normalizer"
"""Name of a_i in a contribution."""


def normalizer(local: LocalTraining, steps: Array | int, pool: Pool) -> Array:
    """float32 a_i of a client that takes `steps` steps in this round; 0 for none, or where the rate is 0."""
    rate = local.rate(pool)

    def step(_, walk):
        at, state = walk
        updates, state = local.optimizer.update({"x": 1.0 + local.pull * at["x"]}, state, at)
        return {"x": at["x"] + rate * updates["x"]}, state

    zero = {"x": jnp.float32(0)}
    start = zero, local.optimizer.init(zero)
    (after, _), (first, _) = jax.lax.fori_loop(0, steps, step, start), step(0, start)
    moves = first["x"] != 0
    return jnp.where(moves, after["x"] / jnp.where(moves, first["x"], 1.0), 0.0)


@checked
def fednova(
    local: LocalTraining,
    server_learning_rate: float = 1.0,
    *,
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging of normalized updates.

    Args:
      local: the clients' local training; the optimizer's state must be fresh each round.
      server_learning_rate: eta_s.
      weighting: clients weigh by `examples` or `uniform`.
      model_state, aggregate: see `parts.from_parts`. An aggregator sees d_i and a_i of a client together.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_not_kept(local, "fednova divides by the steps of one round, beginning with a new state")

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        out = local.train(start, rows, key)
        update = trees.subtract(out.variables.params, start.params)
        length = normalizer(local, out.num_steps, rows.pool)
        sent = {"update": trees.scale(1.0 / jnp.where(length > 0, length, 1.0), update), NORMALIZER: length}
        return ClientOutput(sent, client_weight(weighting, rows.size), out.variables, memory, out.report)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        length = mean.tree[NORMALIZER]
        step = trees.scale(server_learning_rate * length, mean.tree["update"])
        params = local.model.project(trees.add(state.variables.params, step))
        return ServerOutput(params, report={"effective_steps": length})

    return from_parts(
        local, client=client, server=server, model_state=model_state, aggregate=aggregate, plain=(NORMALIZER,)
    )


EXAMPLES = ({}, {"weighting": "uniform", "server_learning_rate": 0.5})
