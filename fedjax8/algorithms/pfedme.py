"""pFedMe: clients' own models are near points of the Moreau envelope around the global one.

    repeat:   theta_i ~ argmin f_i(theta) + lambda/2 ||theta - w_i||^2      by K steps, from the last theta_i
              w_i    <- w_i - rate lambda (w_i - theta_i)
    x <- (1 - beta) x + beta mean(w_i)

T Dinh, Tran and Nguyen 2020, "Personalized federated learning with Moreau envelopes", arXiv 2006.08848, algorithm 1
(recalled, not read again). w_i begins at x. The batch plan's steps are the K steps of all repetitions together; the
paper draws one batch for K steps, here each step has its own. theta_i is the client's own model: look at
`personal_accuracy`.

Traffic: as FedAvg. Memory: a model for every registered client.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, averaging_server, client_weight
from fedjax8.algorithms.lockstep import nan_if_unusable
from fedjax8.algorithms.parts import ClientOutput, check_choice, from_parts
from fedjax8.algorithms.refinements.none import none
from fedjax8.data.batches import num_steps
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import Aggregator, Algorithm, Array, LocalTraining, PyTree, Training, Variables


class Envelope(NamedTuple):
    """A client between two repetitions."""

    theta: Training
    center: PyTree
    """w_i."""


@checked
def pfedme(
    local: LocalTraining,
    pull: float = 15.0,
    *,
    inner_steps: int = 5,
    rate: float = 0.005,
    beta: float = 1.0,
    weighting: str = "uniform",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Models of clients near the global one, and the global one near them.

    Args:
      local: the clients' local training, of theta.
      pull: lambda, above 0 (15 in the paper, as recalled).
      inner_steps: K, steps on theta before one of w (5, likewise).
      rate: of w, above 0; rate times pull must be at most 1, else w passes theta.
      beta: the server's step, above 0 and at most 1.
      weighting: clients weigh by `examples` or `uniform`.
      model_state, aggregate: see `parts.from_parts`.

    Raises:
      UserError: in the first round, if privacy is accounted: a step reads more than its gradient.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    if not (0 < pull < float("inf") and rate > 0 and rate * pull <= 1):
        raise ValueError(f"pull and rate must be above 0, and their product at most 1; got {pull} and {rate}")
    if inner_steps < 1 or not 0 < beta <= 1:
        raise ValueError(
            f"inner_steps must be at least 1, and beta above 0 and at most 1; got {inner_steps} and {beta}"
        )
    check_not_kept(local, "there is one optimizer for each round's theta")

    def client(start, extra, memory: Variables, rows, key, round_number) -> ClientOutput:
        count = num_steps(local.plan, rows.size)

        def repeat(index: Array, now: Envelope) -> Envelope:
            def pulled(gradients: PyTree, params: PyTree, *_: PyTree) -> PyTree:
                return jax.tree.map(lambda g, t, w: g + pull * (t - w), gradients, params, now.center)

            first = index * inner_steps
            taken = jnp.minimum(inner_steps, count - first)
            theta = local.advance(now.theta, rows, key, first, taken, adjust=pulled)
            step = trees.scale(rate * pull, trees.subtract(theta.variables.params, now.center))
            return Envelope(theta, trees.add(now.center, step))

        begun = local.start(memory, rows)
        check_restarts(begun.optimizer)
        done = jax.lax.fori_loop(0, -(-count // inner_steps), repeat, Envelope(begun, start.params))
        theta = done.theta.variables
        sent = {"params": local.model.project(done.center)}
        trained = Variables(sent["params"], theta.state)
        report = nan_if_unusable(done.theta.report, theta)
        return ClientOutput(sent, client_weight(weighting, rows.size), trained, theta, report)

    made = from_parts(
        local,
        client=client,
        server=averaging_server(local, "params", beta, none()),
        init_client=lambda variables: variables,
        model_state=model_state,
        aggregate=aggregate,
    )
    return made._replace(personal=lambda state, own: own["memory"])


EXAMPLES = ({}, {"pull": 2.0, "rate": 0.5, "inner_steps": 2, "beta": 0.5, "weighting": "examples"})
