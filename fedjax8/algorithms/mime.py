"""Mime: clients take the steps of one central optimizer, whose state is held while they train.

Karimireddy et al. 2020, "Mime: Mimicking Centralized Stochastic Algorithms in Federated Learning", arXiv 2008.03606,
algorithm 1.

    c   =  sum_i p_i grad f_i(x)                              full gradients of the round's clients
    y   <- y - eta U(g_B(y) - g_B(x) + c, s)                  both gradients of one batch B, with the same draws
    x   <- x + eta_s sum_i p_i (y_i - x);     s <- the state of U after c

U is an optimizer's step and s its state (momentum, second moments), which the server keeps. p_i is by examples, as
in FedJAX; in the paper means are uniform. eta is the rate of the clients' own optimizer, which must be plain SGD.

Traffic: two exchanges. Down x and s, up a full gradient; down c, up an update. The full gradient costs a pass over the
client's rows, and each step a second gradient.
"""

import jax
import jax.numpy as jnp
import optax

from fedjax8 import trees
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import (
    Aggregate,
    ClientOutput,
    FirstExchange,
    ServerOutput,
    ServerState,
    check_choice,
    from_parts,
)
from fedjax8.data.batches import steps_per_epoch
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining, PyTree, Variables

GRADIENT = "gradient"
"""Name of the full gradient in a contribution."""


def momentum() -> optax.GradientTransformation:
    """The base optimizer unless another is given: SGD of momentum 0.9 and rate 1."""
    return optax.sgd(1.0, momentum=0.9)


def begin(local: LocalTraining, base: optax.GradientTransformation, variables: Variables) -> PyTree:
    """State of the base optimizer before the first round; UserError unless clients take plain steps."""
    if jax.tree.leaves(local.optimizer.init(variables.params)):
        raise UserError(
            "mime and mimelite keep the optimizer's state on the server: clients must take plain steps, such as "
            "optax.sgd(0.1), and momentum or adam belongs in base_optimizer"
        )
    return base.init(variables.params)


def direction(base: optax.GradientTransformation, gradients: PyTree, state: PyTree, params: PyTree) -> PyTree:
    """U, minus the update that `base` makes from a state which it does not change."""
    return trees.scale(-1.0, base.update(gradients, state, params)[0])


def after_round(
    local: LocalTraining,
    base: optax.GradientTransformation,
    state: ServerState,
    update: PyTree,
    gradient: PyTree,
    rate: float,
) -> ServerOutput:
    """The server's step: x plus `rate` times the mean update, and the state of U after the full gradient."""
    params = state.variables.params
    _, memory = base.update(gradient, state.memory, params)
    return ServerOutput(local.model.project(trees.add(params, trees.scale(rate, update))), memory)


@checked
def mime(
    local: LocalTraining,
    base_optimizer: optax.GradientTransformation | None = None,
    *,
    server_learning_rate: float = 1.0,
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Clients that mimic a central optimizer.

    Args:
      local: the clients' local training; plain SGD.
      base_optimizer: U, with a rate of 1; by default SGD with momentum 0.9.
      server_learning_rate: eta_s.
      weighting: clients weigh by `examples` or `uniform`.
      model_state, aggregate: see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if the clients' optimizer has a state of its own.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    base = momentum() if base_optimizer is None else base_optimizer

    def full_gradient(start, extra, rows, key):
        return {"tree": local.full_gradient(start, rows, key)}, client_weight(weighting, rows.size)

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        central = extra[GRADIENT]["tree"]

        def corrected(gradients, params, batch, key):
            at_start = local.gradient(start, rows, batch, key)
            gradients = jax.tree.map(lambda g, at_x, c: g - at_x + c, gradients, at_start, central)
            return direction(base, gradients, extra["optimizer"], params)

        out = local.train(start, rows, key, adjust=corrected)
        sent = {"update": trees.subtract(out.variables.params, start.params)}
        return ClientOutput(sent, client_weight(weighting, rows.size), out.variables, memory, out.report, out.optimizer)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        return after_round(local, base, state, mean.tree["update"], mean.first["tree"], server_learning_rate)

    return from_parts(
        local,
        client=client,
        server=server,
        init=lambda variables: begin(local, base, variables),
        extra=lambda state: {"optimizer": state.memory},
        model_state=model_state,
        aggregate=aggregate,
        first=FirstExchange(GRADIENT, full_gradient, lambda sizes: jnp.int32(steps_per_epoch(local.plan, sizes))),
    )


EXAMPLES = ({}, {"base_optimizer": optax.sgd(1.0), "weighting": "uniform"})
