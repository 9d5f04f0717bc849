"""Ditto: beside FedAvg's model every client trains one of its own, held near the global one.

    x    by FedAvg
    v_i <- v_i - eta (g_i(v_i) + lambda (v_i - x))      for as many steps, on the same batches

Li et al. 2021, "Ditto: Fair and robust federated learning through personalization", arXiv 2012.04221, algorithm 1
(recalled, not read again); x is the model that the client has received. With lambda = 0 the own models are those of
`local_only`, bit for bit. The global model is FedAvg's. Look at `personal_accuracy`.

Traffic: as FedAvg. A round takes twice the steps. Memory: a model for every registered client.
"""

import jax

from fedjax8 import trees
from fedjax8.algorithms.fedavg import PAYLOADS, WEIGHTINGS, averaging_server, client_weight
from fedjax8.algorithms.lockstep import nan_if_unusable
from fedjax8.algorithms.parts import ClientOutput, check_choice, from_parts, outgoing
from fedjax8.algorithms.refinements.none import none
from fedjax8.data.batches import num_steps
from fedjax8.given import checked
from fedjax8.local import check_not_kept, check_restarts
from fedjax8.types import Aggregator, Algorithm, LocalTraining, PyTree, Variables


@checked
def ditto(
    local: LocalTraining,
    pull: float = 0.1,
    *,
    server_learning_rate: float = 1.0,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """A model of its own for every client, near the global one.

    Args:
      local: the clients' local training, of both models.
      pull: lambda, from 0 up; 0.1 to 1 in the paper's experiments, as recalled.
      server_learning_rate, payload, weighting, model_state, aggregate: as in `fedavg`, for the global model.

    Raises:
      UserError: in the first round, if privacy is accounted, since a client takes twice the steps of its batch plan.
    """
    check_choice("payload", payload, PAYLOADS)
    check_choice("weighting", weighting, WEIGHTINGS)
    if not 0 <= pull < float("inf"):
        raise ValueError(f"pull must be a number from 0 up, got {pull}")
    check_not_kept(local, "there would be one optimizer for two models")

    def client(start, extra, memory: Variables, rows, key, round_number) -> ClientOutput:
        def pulled(gradients: PyTree, params: PyTree, *_: PyTree) -> PyTree:
            return jax.tree.map(lambda g, v, x: g + pull * (v - x), gradients, params, start.params)

        out = local.train(start, rows, key)
        begun = local.start(memory, rows)
        check_restarts(begun.optimizer)
        # Not a second `train`, which an accountant would not know of.
        own = local.advance(begun, rows, key, 0, num_steps(local.plan, rows.size), adjust=pulled if pull else None)
        report = nan_if_unusable(trees.add(out.report, trees.scale(0.0, own.report)), own.variables)
        sent = outgoing(payload, out.variables.params, start.params)
        return ClientOutput(sent, client_weight(weighting, rows.size), out.variables, own.variables, report)

    made = from_parts(
        local,
        client=client,
        server=averaging_server(local, payload, server_learning_rate, none()),
        init_client=lambda variables: variables,
        model_state=model_state,
        aggregate=aggregate,
        steps=lambda size: 2 * num_steps(local.plan, size),
    )
    return made._replace(personal=lambda state, own: own["memory"])


EXAMPLES = ({}, {"pull": 0.0, "payload": "update", "weighting": "uniform"})
