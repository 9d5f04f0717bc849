"""Agnostic federated learning: a model for the worst mixture of the clients (Mohri, Sivek, Suresh 2019, arXiv
1902.00146, algorithm 1).

    x      <- x + sum_k lambda_k (y_k - x)                                  one step: x - eta sum_k lambda_k grad f_k(x)
    lambda <- projection on the simplex of (lambda + gamma F),   F_k = f_k(x), the loss at the model that was received

lambda has a weight for each client, at first 1/K; the server keeps it. Every client takes part in every round, since a
projection changes all weights. The result is the mean of the models after each round, as in the paper, or the last one.
Several local steps are beyond the paper, and so is leaving clients without rows out of the mean.

Traffic: as FedAvg, and 4 bytes up for the loss as float32. A client reads its rows once more for it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax8 import trees
from fedjax8.algorithms.parts import check_choice
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.given import checked
from fedjax8.local import check_not_kept
from fedjax8.types import (
    Algorithm,
    Array,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    Partial,
    RoundOutput,
    Variables,
)

EVALUATED = ("average", "last")
LOSS = "loss"
"""Name of F_k in a contribution."""


class AgnosticState(NamedTuple):
    """State of the server without the weights, which are in the clients' states."""

    variables: Variables
    """x, float32."""
    average: Variables
    """Mean of the models after each round."""
    rounds: Array
    """int32: rounds in it."""


class Weighed(NamedTuple):
    """The server's record of a client."""

    weight: Array
    """float32: K lambda_k."""
    number: Array
    """int32: its number."""


def risen(weights: Array, rate: float, losses: Array) -> Array:
    """float32 `[K]`: the projection of weights + rate * losses on the simplex, for losses of any size.

    The projection doesn't change when a number is added to all entries, nor when those more than 1 below the largest
    are raised to that. Without either, float32 rounds large entries by more than 1, and the sum is not 1.
    """
    moved = weights + rate * (losses - jnp.max(losses))
    return optax.projections.projection_simplex(jnp.maximum(moved - jnp.max(moved), -1.0))


@checked
def agnostic(local: LocalTraining, weight_learning_rate: float = 0.1, *, evaluated: str = "average") -> Algorithm:
    """Agnostic federated learning.

    Args:
      local: the clients' local training.
      weight_learning_rate: gamma, from 0 up; with 0 all clients weigh the same.
      evaluated: which model is the result, the `average` over rounds or the `last` one.

    Model state is averaged by the same weights. Memory of a device grows with the number of clients: 4 bytes for each
    client that it works on at once.
    """
    check_choice("evaluated", evaluated, EVALUATED)
    if not 0 <= weight_learning_rate <= jnp.finfo(jnp.float32).max:
        raise ValueError(f"weight_learning_rate must be a number from 0 up, got {weight_learning_rate}")
    check_not_kept(local, "agnostic's clients keep nothing")

    def init(variables: Variables) -> AgnosticState:
        return AgnosticState(variables, variables, jnp.int32(0))

    def round_(link: Link, state: AgnosticState, cohort: Cohort, key: Key) -> RoundOutput:
        down_key, client_key = jax.random.split(key)
        count = link.num_clients
        received, link = link.broadcast(down_key, state.variables._asdict(), cohort)

        def at_own_place(client: Weighed, value: Array) -> Array:
            return jnp.zeros(count).at[client.number].set(value, mode="drop")

        def weigh(_, client: Weighed, rows, key) -> tuple[Partial, Weighed]:
            return Partial(at_own_place(client, client.weight)), client

        def train(received, client: Weighed, rows, key) -> Contribution:
            start = Variables(received["params"], received["state"])
            loss, out = local.mean_loss(start, rows), local.train(start, rows, key)
            update = trees.subtract(out.variables.params, start.params)
            sent = {"update": update, "state": out.variables.state, LOSS: loss}
            weight = jnp.where(rows.size > 0, client.weight, 0.0)
            return Contribution(sent, weight, client, out.report | {"losses": at_own_place(client, loss)})

        placed = cohort.remember(Weighed(cohort.memory, cohort.ids))
        weights = link.on_clients(weigh, (), placed, client_key)[0].sum / count
        codec, origin = per_path({LOSS: none()}, link.uplink), {"state": received["state"]}
        reduced, states, link = link.map_clients(train, received, placed, client_key, codec=codec, origin=origin)

        with jax.named_scope("server"):
            report = dict(reduced.report)
            losses = report.pop("losses")
            weights = risen(weights, weight_learning_rate, losses)
            old = state.variables
            params = local.model.project(trees.add(old.params, reduced.mean["update"]))
            new = trees.select(reduced.weight > 0, Variables(params, reduced.mean["state"]), Variables(*old[:2]))
            rounds = state.rounds + 1
            average = jax.tree.map(lambda mean, x: mean + (x - mean) / rounds, Variables(*state.average[:2]), new)
        report |= {"clients": reduced.clients, "largest_weight": jnp.max(weights), "largest_loss": jnp.max(losses)}
        own = count * weights[jnp.minimum(cohort.ids, count - 1)]
        return RoundOutput(AgnosticState(new, average, rounds), states | {"algorithm": own}, link, report)

    def result(state: AgnosticState) -> Variables:
        return state.average if evaluated == "average" else state.variables

    return Algorithm(local, init, lambda variables: jnp.float32(1), round_, result, everyone=True)


EXAMPLES = ({}, {"weight_learning_rate": 0.01, "evaluated": "last"})
