"""DiLoCo: many local steps with a kept inner optimizer, then an outer step with Nesterov momentum; and its streaming
form, in which parts of the model synchronize one after another while training goes on.

Douillard et al. 2023, arXiv 2311.08105, algorithm 1; streaming: Douillard et al. 2025, arXiv 2501.18512. Read through
descriptions and implementations of others, not in full; what was chosen here is marked.

    every client k:   x_k = x;   H steps of the inner optimizer, whose state stays with the client and is never sent
    G = mean_k (x - x_k);        x <- x - outer(G),    outer: SGD, learning rate 0.7, Nesterov momentum 0.9

Streaming: the layers are dealt to P parts in turn (layer i to part i mod P), and clients keep their models. With g_p
the last synchronized values of part p, and H local steps a cycle,

    after local step p H / P (mod H):        G_p = mean_k (g_p - x_k,p);     g_p <- g_p - outer_p(G_p)
    `delay` local steps later, on client k:  x_k,p <- mixing x_k,p + (1 - mixing) g_p

so that the transfer of a part may take as long as `delay` steps. A *round* of the simulation is a cycle: the local
steps of the batch plan, with an exchange for each part, in the order 1, 2, ..., P - 1, 0. A part that arrives after the
end of a cycle is mixed in during the next one.

Traffic: a model down, a model up per client and cycle, in P messages each way on channels of their own; the largest
part is the peak. Streaming clients also get the initial model, once.

Chosen here: layers are those of `layers.layers_of`, embeddings among them; each part has an outer
optimizer of its own; a client whose contribution could not be used goes on from the last synchronized model in its
next exchange, which costs nothing since it has received every part.
"""

import optax

from fedjax8.algorithms import lockstep
from fedjax8.algorithms.diloco_stream import Streaming, outer_step
from fedjax8.algorithms.fedavg import WEIGHTINGS, client_weight
from fedjax8.algorithms.parts import (
    MODEL_STATE,
    Aggregate,
    ClientOutput,
    ServerOutput,
    ServerState,
    check_choice,
    from_parts,
    outgoing,
)
from fedjax8.data.batches import num_steps
from fedjax8.given import checked
from fedjax8.types import Aggregator, Algorithm, LocalTraining


@checked
def diloco(
    local: LocalTraining,
    server_learning_rate: float = 0.7,
    *,
    momentum: float = 0.9,
    server_optimizer: optax.GradientTransformation | None = None,
    parts: int = 1,
    delay: int = 0,
    mixing: float = 0.0,
    weighting: str = "uniform",
    model_state: str = "average",
    aggregate: Aggregator | None = None,
) -> Algorithm:
    """DiLoCo; with `parts`, `delay` or `mixing` streaming DiLoCo, in which every client takes part in every round.

    Args:
      local: the clients' local training; its optimizer is the inner one (AdamW in the paper), and its batch plan gives
        H. Streaming clients all take the steps of the largest of them.
      server_learning_rate: of the outer SGD.
      momentum: its Nesterov momentum.
      server_optimizer: another outer optimizer in place of that SGD.
      parts: P; at most the number of layers.
      delay: local steps from a part's synchronization to its use; below H / P. Where H depends on the clients' sizes,
        a part is used before the next synchronization at the latest.
      mixing: share of the client's own value; 0 takes the synchronized one.
      weighting: clients weigh `uniform` or by `examples`.
      model_state: as in `from_parts`. Where it is averaged it travels with part 0.
      aggregate: the aggregation rule, applied to each part by itself.
    """
    check_choice("weighting", weighting, WEIGHTINGS)
    check_choice("model_state", model_state, MODEL_STATE)
    if parts < 1 or delay < 0:
        raise ValueError(f"parts must be at least 1 and delay at least 0; got parts={parts}, delay={delay}")
    if not 0 <= mixing < 1:
        raise ValueError(f"mixing must be at least 0 and below 1, got {mixing}")
    if local.plan.steps and delay * parts >= local.plan.steps:
        raise ValueError(
            f"delay must be below the {local.plan.steps} local steps of a round over {parts} parts, so that a part is "
            f"used before the next one is sent; got {delay}"
        )
    if local.plan.steps and parts > local.plan.steps:
        raise ValueError(f"parts must be at most the {local.plan.steps} local steps of a round, got {parts}")
    if server_optimizer is None:
        server_optimizer = optax.sgd(server_learning_rate, momentum or None, nesterov=bool(momentum))
    elif (server_learning_rate, momentum) != (0.7, 0.9):
        raise ValueError("server_optimizer has a rate and a momentum of its own; give it alone")
    if parts == 1 and delay == 0 and mixing == 0:
        return _whole(local, server_optimizer, weighting, model_state, aggregate)
    return Streaming(local, server_optimizer, parts, delay, mixing, weighting, model_state, aggregate).algorithm()


def _whole(
    local: LocalTraining,
    optimizer: optax.GradientTransformation,
    weighting: str,
    model_state: str,
    aggregate: Aggregator | None,
) -> Algorithm:
    """DiLoCo in one part: clients start from the model that they receive, with the optimizer that they keep."""

    def client(start, extra, memory, rows, key, round_number) -> ClientOutput:
        begun = local.start(start, rows)._replace(optimizer=memory)
        done = local.advance(begun, rows, key, 0, num_steps(local.plan, rows.size))
        report = lockstep.nan_if_unusable(done.report, done.variables)
        sent, weight = outgoing("update", done.variables.params, start.params), client_weight(weighting, rows.size)
        return ClientOutput(sent, weight, done.variables, done.optimizer, report)

    def server(state: ServerState, mean: Aggregate, key) -> ServerOutput:
        params, memory = outer_step(local, optimizer, state.variables.params, mean.tree["update"], state.memory)
        return ServerOutput(local.model.project(params), memory)

    return from_parts(
        local._replace(keep_optimizer=False),  # kept here, whatever the setting
        client=client,
        server=server,
        init=lambda variables: optimizer.init(variables.params),
        init_client=lambda variables: local.optimizer.init(variables.params),
        model_state=model_state,
        aggregate=aggregate,
    )


EXAMPLES = (
    {},
    {"parts": 2, "delay": 1, "mixing": 0.5},
    {"parts": 2, "server_learning_rate": 1.0, "momentum": 0.0},
    {"mixing": 0.5, "weighting": "examples"},
)
