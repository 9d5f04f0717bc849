"""Algorithms on a graph: every client is a worker with a model of its own, and there is no server.

    y_i   <- a worker's own steps
    m_i   = weighted mean of y_i and of those that it hears, as they decode them      `link.mix`
    x_i   <- a rule on (y_i, own y_i as decoded, m_i)

`on_graph` makes the usual shape. The model that is evaluated is the mean of all workers, which nobody has: only the
simulator knows it. Each worker's own is its personal one. The log has `consensus_distance`, the root mean square
distance of the workers' public parameters from that mean.

Every worker takes part in every round. One that drops out trains nothing, is not heard, and keeps its model. A worker's
message counts once for each that hears it (`peer_bytes`). Memory: a model a worker, and on every device the decoded
messages of all workers in a round.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.algorithms.lockstep import nan_if_unusable, squared_norm
from fedjax8.algorithms.parts import ServerState, check_choice
from fedjax8.errors import UserError
from fedjax8.paths import ALL_PUBLIC, Split
from fedjax8.topologies import Topology
from fedjax8.topologies.base import out_degrees
from fedjax8.types import (
    Algorithm,
    Array,
    Channel,
    ClientRows,
    Codec,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    RoundOutput,
    Variables,
    Way,
)

MODEL_STATE = ("average", "local")


class Worker(NamedTuple):
    """A worker's memory."""

    variables: Variables
    """Its model, float32."""
    extra: PyTree = ()
    """What its algorithm remembers beside it."""


class Worked(NamedTuple):
    """A worker's own work in a round."""

    variables: Variables
    """Its model after it."""
    report: dict[str, Array]
    extra: PyTree = ()
    """The memory beside the model."""


Work = Callable[[Worker, ClientRows, Key, Array], Worked]
"""`(worker, rows, key, round_number) -> Worked`."""
Rule = Callable[[Worker, PyTree, PyTree], tuple[PyTree, PyTree]]
"""`(worker after its work, own parameters as decoded, weighted mean) -> (parameters, extra)`, of public parameters."""


def take_mean(worker: Worker, own: PyTree, mean: PyTree) -> tuple[PyTree, PyTree]:
    """The rule that takes the mean."""
    return mean["params"], worker.extra


def sent_params(before: Worker, after: Worker) -> dict[str, PyTree]:
    """The message of the parameters alone, after a worker's steps."""
    return {"params": after.variables.params}


def on_graph(
    local: LocalTraining,
    topology: Topology,
    work: Work,
    *,
    rule: Rule = take_mean,
    message: Callable[[Worker, Worker], dict[str, PyTree]] = sent_params,
    coded: Callable[[Codec], Codec] = lambda codec: codec,
    init_extra: Callable[[Variables], PyTree] = lambda variables: (),
    private: Split = ALL_PUBLIC,
    model_state: str = "average",
    steps: Callable[[Array], Array] | None = None,
) -> Algorithm:
    """An `Algorithm` of workers on a graph.

    Args:
      local: the workers' local training.
      topology: the graph of each round.
      work: a worker's own steps.
      rule: what it makes of the mean. The model's `project` is applied to the result.
      message: a worker before and after its work, with public parameters alone, to the trees that it sends, by name.
      coded: the run's uplink codec to that of the messages.
      init_extra: initial variables to the memory beside the model.
      private: which parameters are each worker's own; they are not sent.
      model_state: state such as batch statistics is sent and averaged with the parameters (`average`), or stays with
        each worker (`local`).
      steps: examples of a worker to the local steps that it takes, where these aren't the batch plan's.
    """
    check_choice("model_state", model_state, MODEL_STATE)

    def graph(round_number: Any, workers: int) -> Any:
        return topology.graph(round_number, workers)

    def start(variables: Variables) -> Worker:
        return Worker(variables, init_extra(variables))

    def shared_of(worker: Worker) -> Worker:
        """The worker without its private parameters."""
        return worker._replace(variables=worker.variables._replace(params=private.cut(worker.variables.params)[0]))

    def client(round_number: Array, memory: Worker, rows: ClientRows, key: Key) -> Contribution:
        done = work(memory, rows, key, round_number)
        after = Worker(done.variables, done.extra)
        sent = message(shared_of(memory), shared_of(after))
        if model_state == "average":
            sent |= {"state": done.variables.state}
        report = nan_if_unusable(done.report, done.variables)
        return Contribution(sent, jnp.float32(1), after, report)

    def receive(memory: Worker, own: PyTree, mean: PyTree) -> Worker:
        params, extra = rule(shared_of(memory), own, mean)
        _, kept = private.cut(memory.variables.params)
        whole = local.model.project(private.merge(params, kept))
        return Worker(Variables(whole, mean.get("state", memory.variables.state)), extra)

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        if link.attack.send is not None:
            raise UserError(
                "config.attack: attacks on messages are measured against one model that all start from, which workers "
                "on a graph do not have; use label_flip, or an algorithm with a server"
            )
        # Keys as those of FedAvg's clients, so that the first round of both is the same training.
        _, client_key, _ = jax.random.split(key, 3)
        taken = None if steps is None else steps(cohort.size)
        now = graph(link.round_number, link.num_clients)
        asked = client, receive, link.round_number, cohort, client_key, now
        mixed, states, link = link.mix(*asked, codec=coded(link.uplink), steps=taken)
        mean, distance = _spread(link, states["algorithm"], cohort.valid, private)
        report: dict[str, Any] = mixed.report | {"clients": mixed.clients, "consensus_distance": distance}
        return RoundOutput(ServerState(mean, state.memory), states, link, report)

    def ways(channels: Sequence[Channel], _: int, workers: int) -> Sequence[Way]:
        """A worker whom the fewest hear, and one whom the most hear."""
        degrees = np.asarray(out_degrees(graph(0, workers)))
        least, most = int(degrees.min()), int(degrees.max())
        return {c: least for c in channels if not c.part}, dict.fromkeys(channels, most)

    return Algorithm(
        local,
        lambda variables: ServerState(variables, ()),
        start,
        round_,
        lambda state: state.variables,
        everyone=True,
        personal=lambda state, worker: worker.variables,
        ways=ways,
        steps=steps,
        graph=graph,
    )


def _spread(link: Link, workers: Worker, there: Array, private: Split) -> tuple[Variables, Array]:
    """(mean of all workers' models, root mean square distance of their public parameters from it), of leaves `[C,
    ...]`; in two passes, since a difference of squares loses all digits where workers are nearly equal."""
    mean: Variables = link.average(workers.variables, there)
    public, _ = private.cut(workers.variables.params)
    middle, _ = private.cut(mean.params)
    squares = jax.vmap(lambda params: squared_norm(trees.subtract(params, middle)))(public)
    distance: Array = jnp.sqrt(link.average(squares, there))
    return mean, distance
