"""FedRep: clients first fit a head of their own to the body that all share, then the body to their heads.

    h_i <- tau epochs of steps on h_i at (b, h_i), b held
    b_i  = the batch plan's steps on b at (b, h_i), h_i held;      b <- (1 - eta_s) b + eta_s sum_i p_i b_i

Collins et al. 2021, "Exploiting shared representations for personalized federated learning", arXiv 2102.07089,
algorithm 1. The paper's text was not at hand: that its experiments take ten epochs for the head is quoted from memory.
Weights p_i, eta_s and the choice of payload are FedAvg's here, and the client's optimizer begins anew with each phase.
The held part does not change by a bit, whatever the optimizer does (momentum, weight decay). State of the model,
such as batch statistics, is that of both phases. As in `fedper`, look at `personal_accuracy`: the global model has
the head that all began with.

Traffic: the body down, the body up per client and round. Every client remembers its head.
"""

from collections.abc import Sequence

import jax

from fedjax8 import trees
from fedjax8.algorithms.fedavg import PAYLOADS, WEIGHTINGS, averaging_server, client_weight
from fedjax8.algorithms.parts import ClientOutput, check_choice, from_parts, outgoing
from fedjax8.algorithms.refinements.none import none
from fedjax8.data.batches import num_steps, steps_per_epoch
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.paths import Split, split
from fedjax8.types import (
    Adjust,
    Aggregator,
    Algorithm,
    Array,
    Batch,
    ClientRows,
    Key,
    LocalTraining,
    PyTree,
    Training,
    Variables,
)

PRIVATE, PUBLIC = "private", "public"
MOST_EPOCHS = 10_000
"""Of the head, so that its steps can be counted in int32 for clients of 200,000 batches."""


@checked
def fedrep(
    local: LocalTraining,
    private: Sequence[str] | str | None = None,
    *,
    head_epochs: int = 10,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging of the public part, trained after the private one.

    Args:
      local: the clients' local training; the batch plan's steps are those of the public part.
      private: patterns on paths of the parameters that each client keeps, such as `("Dense_2", "*/bias")`; None: the
        last layer.
      head_epochs: tau, passes over a client's rows for the private part, from 1 to MOST_EPOCHS.
      server_learning_rate, payload, weighting: as in `fedavg`, for the public part.
      model_state, aggregate: see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if a pattern matches nothing, if nothing is left to be public, or if privacy is
        accounted, since the steps are others than the batch plan's.
    """
    check_choice("payload", payload, PAYLOADS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if not 1 <= head_epochs <= MOST_EPOCHS:
        raise ValueError(
            f"head_epochs must be from 1 to {MOST_EPOCHS}, got {head_epochs}; fedper trains both parts together"
        )
    check_not_kept(local, "a client's optimizer begins anew with each part of the model")
    cut = split(private)

    def head_steps(size: Array) -> Array:
        return head_epochs * steps_per_epoch(local.plan, size)

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        head_key, body_key = jax.random.split(key)
        fitted = train_part(local, cut, PRIVATE, start, rows, head_key, head_steps(rows.size))
        done = train_part(local, cut, PUBLIC, fitted.variables, rows, body_key, num_steps(local.plan, rows.size))
        sent = outgoing(payload, done.variables.params, start.params)
        report = trees.add(fitted.report, done.report)
        return ClientOutput(sent, client_weight(weighting, rows.size), done.variables, memory, report)

    return from_parts(
        local,
        client=client,
        server=averaging_server(local, payload, server_learning_rate, none()),
        model_state=model_state,
        aggregate=aggregate,
        private=cut,
        steps=lambda size: head_steps(size) + num_steps(local.plan, size),
    )


def train_part(
    local: LocalTraining,
    cut: Split,
    part: str,
    variables: Variables,
    rows: ClientRows,
    key: Key,
    count: Array,
    adjust: Adjust = lambda gradients, *_: gradients,
) -> Training:
    """The client after `count` steps on one part of its parameters, `private` or `public`; the other stays as it is.
    `adjust` changes the gradients of a step first."""

    def learned(params: PyTree, otherwise: PyTree) -> PyTree:
        """`params` in the part that is trained, `otherwise` in the other."""
        public, own = cut.cut(params)
        held_public, held_own = cut.cut(otherwise)
        return cut.merge(held_public, own) if part == PRIVATE else cut.merge(public, held_own)

    def step(index: Array, training: Training) -> Training:
        def within(gradients: PyTree, params: PyTree, batch: Batch, key: Key) -> PyTree:
            gradients = adjust(gradients, params, batch, key)
            return learned(gradients, trees.zeros_like(gradients))

        done = local.advance(training, rows, key, index, 1, adjust=within)
        params = learned(done.variables.params, variables.params)
        return done._replace(variables=done.variables._replace(params=params))

    begun = local.start(variables, rows)
    check_restarts(begun.optimizer)
    return jax.lax.fori_loop(0, count, step, begun)


EXAMPLES = (
    {"head_epochs": 2},
    {"private": "*bias", "head_epochs": 1, "payload": "update", "server_learning_rate": 0.5},
)
