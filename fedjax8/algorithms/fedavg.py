"""FedAvg: clients train, the server takes the weighted mean (McMahan et al. 2017, arXiv 1602.05629, algorithm 1).

    y_i = train(x, client i);      x <- (1 - eta_s) x + eta_s sum_i p_i y_i,      p_i = n_i / sum_j n_j

With `payload="update"` clients send y_i - x instead and the server adds the mean. With the `qat` adapter and `fp8`
codecs both ways this is FP8FedAvg-UQ, as this project names it, after Wang et al. (arXiv 2407.02610: 8-bit clients and
messages, float32 server), and with `refine=uq_plus()` FP8FedAvg-UQ+; both names and the details are inferred.

Traffic: one model down, one model up per client and round.
"""

from fedjax8 import trees
from fedjax8.algorithms.aggregators.median import median
from fedjax8.algorithms.parts import (
    Aggregate,
    ClientOutput,
    ClientWork,
    ServerOutput,
    ServerState,
    ServerStep,
    check_choice,
    from_parts,
    mean_update,
    outgoing,
)
from fedjax8.algorithms.refinements.base import Refinement
from fedjax8.algorithms.refinements.none import none
from fedjax8.algorithms.refinements.uq_plus import uq_plus
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, Array, Key, LocalTraining, PyTree

WEIGHTINGS = ("examples", "uniform")
PAYLOADS = ("params", "update")


def client_weight(weighting: str, size: Array) -> Array:
    """float32 weight of a client of `size` examples; 0 for an empty client either way."""
    return (size if weighting == "examples" else size > 0).astype("float32")


def training_client(local: LocalTraining, payload: str, weighting: str) -> ClientWork:
    """The client of FedAvg and of algorithms that differ from it on the server alone: it trains, and sends the model or
    its update."""
    check_choice("payload", payload, PAYLOADS)
    check_choice("weighting", weighting, WEIGHTINGS)

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        out = local.train(start, rows, key)
        sent = outgoing(payload, out.variables.params, start.params)
        weight = client_weight(weighting, rows.size)
        return ClientOutput(sent, weight, out.variables, memory, out.report, out.optimizer)

    return client


def averaging_server(local: LocalTraining, payload: str, server_learning_rate: float, refine: Refinement) -> ServerStep:
    """The server of FedAvg and of algorithms that differ from it on the clients alone: a step toward their mean,
    refined."""

    def average(params: PyTree, mean: Aggregate) -> PyTree:
        if payload == "params" and server_learning_rate == 1.0:
            return mean.tree["params"]  # the mean itself, not x + (mean - x), which rounds
        step = trees.scale(server_learning_rate, mean_update(params, mean))
        return local.model.project(trees.add(params, step))

    def server(state: ServerState, mean: Aggregate, key: Key) -> ServerOutput:
        params, report = refine.step(key, average(state.variables.params, mean), mean.lowest, mean.highest)
        return ServerOutput(params, report=report)

    return server


@checked
def fedavg(
    local: LocalTraining,
    server_learning_rate: float = 1.0,
    *,
    payload: str = "params",
    weighting: str = "examples",
    model_state: str = "average",
    refine: Refinement | None = None,
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """Federated averaging.

    Args:
      local: the clients' local training.
      server_learning_rate: eta_s; 1 is the plain mean.
      payload: clients send their `params` or their `update`.
      weighting: clients weigh by `examples` or `uniform`.
      model_state: `average`, `local` or `fixed`; see `parts.from_parts`.
      refine: the server's step on the new model, from `algorithms.refinements`; none by default.
      aggregate: the aggregation rule, from `algorithms.aggregators`; by default the weighted mean.
    """
    if refine is not None and payload != "params":
        raise ValueError("refine reads the clients' clips and needs payload='params'")
    refine = none() if refine is None else refine

    server = averaging_server(local, payload, server_learning_rate, refine)
    client = training_client(local, payload, weighting)
    watch = lambda sent: refine.watch(sent.get("params"))
    return from_parts(local, client=client, server=server, watch=watch, model_state=model_state, aggregate=aggregate)


EXAMPLES = (
    {},
    {"payload": "update"},
    {"weighting": "uniform", "server_learning_rate": 0.5},
    {"refine": uq_plus(points=3)},
    {"aggregate": median()},
)
