"""APFL: every client uses a mixture of a model of its own and the global one.

    w_i <- w_i - eta g_i(w_i)                          from the global model, averaged as in FedAvg
    v_i <- v_i - eta alpha_i g_i(m_i),                 m_i = alpha_i v_i + (1 - alpha_i) w_i
    alpha_i <- clip(alpha_i - rate <g_i(m_i), v_i - w_i>, 0, 1)          where alpha is learned

Deng, Kamani and Mahdavi 2020, "Adaptive personalized federated learning", arXiv 2003.13461, algorithm 1 (recalled, not
read again); all three at the same batch, from the values before the step. The client's model in use is alpha_i v_i +
(1 - alpha_i) x with the present global x. With alpha = 0 that is FedAvg's model, and with alpha = 1 a model trained
alone. Look at `personal_accuracy`.

Traffic: as FedAvg. A round takes twice the steps. Memory: a model and a number for every registered client.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import PAYLOADS, WEIGHTINGS, averaging_server, client_weight
from fedjax8.algorithms.lockstep import nan_if_unusable
from fedjax8.algorithms.parts import ClientOutput, ServerState, check_choice, from_parts, outgoing
from fedjax8.algorithms.refinements.none import none
from fedjax8.data.batches import num_steps
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import Aggregator, Algorithm, Array, LocalTraining, PyTree, Training, Variables


class Mixture(NamedTuple):
    """A client's memory."""

    own: Variables
    """v_i, and the model's state as it trained it."""
    alpha: Array
    """float32, from 0 to 1."""


class Both(NamedTuple):
    """A client between two of its steps."""

    shared: Training
    own: Training
    alpha: Array


@checked
def apfl(
    local: LocalTraining,
    alpha: float = 0.5,
    *,
    alpha_rate: float = 0.0,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """A mixture of two models for every client.

    Args:
      local: the clients' local training, of both models.
      alpha: share of a client's own model, from 0 to 1; the first one where it is learned.
      alpha_rate: step of alpha, from 0 up; 0 leaves it as it is.
      server_learning_rate, payload, weighting, model_state, aggregate: as in `fedavg`, for the global model.

    Raises:
      UserError: in the first round, if privacy is accounted, since a client takes other gradients than those of its
        batch plan.
    """
    check_choice("payload", payload, PAYLOADS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if not 0 <= alpha <= 1 or not 0 <= alpha_rate < float("inf"):
        raise ValueError(f"alpha must be from 0 to 1 and alpha_rate from 0 up; got {alpha} and {alpha_rate}")
    check_not_kept(local, "there would be one optimizer for two models")

    def client(start, extra, memory: Mixture, rows, key, round_number) -> ClientOutput:
        def step(index: Array, both: Both) -> Both:
            w, v = both.shared.variables.params, both.own.variables.params
            middle = mixed(both.alpha, v, w)
            slope: list[Array] = []

            def of_mixture(_: PyTree, __: PyTree, batch: PyTree, step_key: PyTree) -> PyTree:
                at = both.own.variables._replace(params=middle)
                gradients = local.gradient(at, rows, batch, step_key)
                slope.append(_product(gradients, trees.subtract(v, w)))
                return trees.scale(both.alpha, gradients)

            own = local.advance(both.own, rows, key, index, 1, adjust=of_mixture)
            shared = local.advance(both.shared, rows, key, index, 1)
            return Both(shared, own, jnp.clip(both.alpha - alpha_rate * slope[0], 0.0, 1.0))

        begun = Both(local.start(start, rows), local.start(memory.own, rows), memory.alpha)
        check_restarts(begun.own.optimizer)
        done = jax.lax.fori_loop(0, num_steps(local.plan, rows.size), step, begun)
        trained, kept = done.shared.variables, Mixture(done.own.variables, done.alpha)
        sent = outgoing(payload, trained.params, start.params)
        report = nan_if_unusable(done.shared.report, kept)
        return ClientOutput(sent, client_weight(weighting, rows.size), trained, kept, report)

    def personal(state: ServerState, own: PyTree) -> Variables:
        memory = own["memory"]
        params = mixed(memory.alpha, memory.own.params, state.variables.params)
        chosen = trees.select(memory.alpha > 0, memory.own.state, state.variables.state)
        return Variables(params, chosen)

    made = from_parts(
        local,
        client=client,
        server=averaging_server(local, payload, server_learning_rate, none()),
        init_client=lambda variables: Mixture(variables, jnp.float32(alpha)),
        model_state=model_state,
        aggregate=aggregate,
        steps=lambda size: 2 * num_steps(local.plan, size),
    )
    return made._replace(personal=personal)


def mixed(alpha: Array, own: PyTree, shared: PyTree) -> PyTree:
    """alpha own + (1 - alpha) shared; `shared` itself where alpha is 0, and `own` where it is 1."""
    return jax.tree.map(lambda v, w: alpha * v + (1.0 - alpha) * w, own, shared)


def _product(a: PyTree, b: PyTree) -> Array:
    """float32: the sum of the products of all values."""
    return sum((jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), jnp.float32(0))


EXAMPLES = ({}, {"alpha": 0.25, "alpha_rate": 0.1, "payload": "update", "weighting": "uniform"})
