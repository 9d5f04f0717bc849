"""MOON: a contrastive loss pulls clients toward the global model's representations, away from their last model's.

Li, He, Song 2021, "Model-Contrastive Federated Learning", arXiv 2103.16054, algorithm 1.

    client i minimizes  f_i(y) + mu mean_b l(b),     server as FedAvg
    l(b) = -log( e^{sim(z, z_g) / tau} / (e^{sim(z, z_g) / tau} + e^{sim(z, z_p) / tau}) )

z is the representation of row b by y, z_g by the model that was received, z_p by the client's model at the end of its
last round (at first, the initial model), sim the cosine. The representation is the input of the last layer
(`models.representation`); layers before it, such as a projection head, are part of the model. All three see the
same batch with the same draws, as in training; the paper does not say so.

Traffic: as FedAvg. A step runs the model twice more, and its representation is differentiated once more. Memory: a
model for each client.
"""

import math

import jax
import jax.numpy as jnp

from fedjax8 import trees
from fedjax8.algorithms.fedavg import PAYLOADS, WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import (
    Aggregate,
    ClientOutput,
    ServerOutput,
    ServerState,
    check_choice,
    from_parts,
    mean_update,
    outgoing,
)
from fedjax8.given import checked
from fedjax8.local import masked_mean
from fedjax8.models.representation import representation
from fedjax8.types import Aggregator, Algorithm, Array, LocalTraining, PyTree, Variables

SMALLEST = 1e-16
"""Squared length below which a vector is divided by the root of this instead; its cosine is then nearly 0."""


def cosine(a: Array, b: Array) -> Array:
    """float32 `[B]`: cosine of the angle between rows `[B, D]`; 0 where one is zero, with a gradient of 0."""
    lengths = jnp.maximum(jnp.sum(a * a, -1), SMALLEST), jnp.maximum(jnp.sum(b * b, -1), SMALLEST)
    return jnp.sum(a * b, -1) * jax.lax.rsqrt(lengths[0]) * jax.lax.rsqrt(lengths[1])


def contrast(z: Array, near: Array, far: Array, temperature: float) -> Array:
    """float32 `[B]`: the contrastive loss l of representations `[B, D]`; log 2 where both are equally near."""
    return jax.nn.softplus((cosine(z, far) - cosine(z, near)) / temperature)


@checked
def moon(
    local: LocalTraining,
    mu: float = 1.0,
    *,
    temperature: float = 0.5,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Model-contrastive federated learning.

    Args:
      local: the clients' local training.
      mu: weight of the contrastive loss; 0.1 to 10 in the paper. With 0 it is FedAvg.
      temperature: tau, 0.5 in the paper.
      payload, weighting: as in `fedavg`.
      model_state, aggregate: see `parts.from_parts`.

    Raises:
      UserError: when a run is set up, if the model has no layer whose input could be the representation; or if steps
        are private, since the loss reads their batches.
    """
    check_choice("payload", payload, PAYLOADS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if not (0 <= mu < math.inf and 0 < temperature < math.inf):
        raise ValueError(f"mu must be a number from 0 up and temperature one above 0; got {mu} and {temperature}")
    model = local.model

    def client(start, extra, memory: Variables, rows, key, round_number) -> ClientOutput:
        def contrasted(gradients, params, batch, key):
            def seen_by(params: PyTree, state: PyTree) -> Array:
                variables = Variables(params, state, rows.pool.frozen)
                return representation(model, variables, batch, key=key, train=True)

            near, far = seen_by(*start[:2]), seen_by(*memory[:2])

            def loss(params):
                return masked_mean(contrast(seen_by(params, start.state), near, far, temperature), batch["mask"])

            return trees.add(gradients, trees.scale(mu, jax.grad(loss)(params)))

        out = local.train(start, rows, key, adjust=contrasted if mu else None)
        sent = outgoing(payload, out.variables.params, start.params)
        own = trees.select(out.num_steps > 0, Variables(*out.variables[:2]), memory)
        return ClientOutput(sent, client_weight(weighting, rows.size), out.variables, own, out.report, out.optimizer)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        if payload == "params":
            return ServerOutput(mean.tree["params"])
        update = mean_update(state.variables.params, mean)
        return ServerOutput(model.project(trees.add(state.variables.params, update)))

    return from_parts(
        local,
        client=client,
        server=server,
        init_client=lambda variables: Variables(*variables[:2]),
        model_state=model_state,
        aggregate=aggregate,
    )


EXAMPLES = ({}, {"mu": 0.1, "temperature": 1.0, "payload": "update"})
