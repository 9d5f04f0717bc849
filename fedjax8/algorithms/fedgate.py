"""FedGATE: every client subtracts its drift from the mean, estimated by the local steps of its last round.

    y <- y - eta (g_i(y) - delta_i)
    x <- x + eta_s mean(y_i - x)
    delta_i <- delta_i + (mean(y_j) - y_i) / (S_i eta)

Haddadpour et al. 2021, arXiv 2007.01154 (FedCOMGATE without compression), as the card of FLANP's authors' code has it
(MLOPTPSU/FedTorch); the paper was not read again. All delta_i begin at 0; their weighted mean stays 0 where all clients
take part and take as many steps.

A client learns mean(y_j) - x from the next model, x + eta_s (mean(y_j) - x), and moves delta_i when it receives that:
a message of its own is not needed. So it must take part in the round after (as clients of a stage of
`participation.stages` do); one that pauses goes on with the delta_i that it has.

Traffic: as FedAvg. The state of a client is two models.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import (
    Aggregate,
    ClientOutput,
    ServerOutput,
    ServerState,
    check_choice,
    from_parts,
    mean_update,
)
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.types import Aggregator, Algorithm, Array, LocalTraining, PyTree, Variables


class Drift(NamedTuple):
    """A client's memory."""

    delta: PyTree
    """float32: delta_i as of its last round."""
    own: PyTree
    """float32: x + eta_s (y_i - x) of that round, the model that would have come of it alone."""
    length: Array
    """float32: S_i eta of that round; 0 before the first."""
    next: Array
    """int32: the round after it."""


@checked
def fedgate(
    local: LocalTraining,
    learning_rate: float,
    *,
    server_learning_rate: float = 1.0,
    weighting: str = "uniform",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging with gradient tracking.

    Args:
      local: the clients' local training; its optimizer must be plain SGD with step `learning_rate`.
      learning_rate: eta; with a local training that is `scheduled`, the optimizer's own, which the schedule multiplies.
      server_learning_rate: eta_s.
      weighting: clients weigh by `examples` or `uniform`.
      model_state, aggregate: see `parts.from_parts`.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_not_kept(local, "fedgate divides by steps of plain SGD, which has no state")
    if learning_rate <= 0 or server_learning_rate <= 0:
        raise ValueError(f"rates must be positive, got {learning_rate} and {server_learning_rate}")

    def init_client(variables: Variables) -> Drift:
        zeros = jax.tree.map(jnp.zeros_like, variables.params)
        return Drift(zeros, zeros, jnp.float32(0), jnp.int32(-1))

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        known = (memory.next == round_number) & (memory.length > 0)
        factor = 1.0 / (server_learning_rate * jnp.where(known, memory.length, 1.0))
        moved = jax.tree.map(lambda d, x, own: d + factor * (x - own), memory.delta, start.params, memory.own)
        delta = trees.select(known, moved, memory.delta)

        def corrected(gradients: PyTree, *_: PyTree) -> PyTree:
            return trees.subtract(gradients, delta)

        out = local.train(start, rows, key, adjust=corrected)
        update = trees.subtract(out.variables.params, start.params)
        own = trees.add(start.params, trees.scale(server_learning_rate, update))
        length = out.num_steps * jnp.float32(learning_rate * local.rate(rows.pool))
        weight = client_weight(weighting, rows.size)
        return ClientOutput(
            {"update": update}, weight, out.variables, Drift(delta, own, length, round_number + 1), out.report
        )

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        step = trees.scale(server_learning_rate, mean_update(state.variables.params, mean))
        return ServerOutput(local.model.project(trees.add(state.variables.params, step)))

    made = from_parts(
        local, client=client, server=server, init_client=init_client, model_state=model_state, aggregate=aggregate
    )
    return made._replace(ages=False)  # a client reads the mean of its round off the next model


EXAMPLES = ({"learning_rate": 0.1}, {"learning_rate": 0.1, "server_learning_rate": 0.5, "weighting": "examples"})
