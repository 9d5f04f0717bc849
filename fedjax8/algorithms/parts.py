"""The usual shape of a round (send, train, reduce, step), from what a client does and what the server does.

    received = link.broadcast({params, state, extra})                 one message for the cohort
    mean     = link.map_clients(client, received)                     weighted mean of decoded contributions
    params, memory, report = server(state, mean, key)

A round in which nobody's contribution could be used changes nothing.

With `private` a part of the parameters is each client's own. It stays with the client, which remembers it; what is
broadcast, sent, averaged and counted is the rest, the public part. The server keeps the private part as initialized,
from which every client starts.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fedjax8 import trees
from fedjax8.algorithms.lockstep import checked
from fedjax8.paths import ALL_PUBLIC, Split
from fedjax8.types import (
    Aggregator,
    Algorithm,
    Array,
    ClientRows,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    Ratio,
    RoundOutput,
    Variables,
)

MODEL_STATE = ("average", "local", "fixed")


class ServerState(NamedTuple):
    """State of every algorithm made by `from_parts`."""

    variables: Variables
    """The global model, float32."""
    memory: PyTree
    """What else the server remembers: an optimizer's moments, control variates."""


class ClientOutput(NamedTuple):
    """What an algorithm's client function returns."""

    sent: dict[str, PyTree]
    """Trees to send up, by name.

    Under `params` clips are read as scales (see `codecs.fp8`), elsewhere as plain numbers.
    """
    weight: Array
    """float32 weight in the mean."""
    variables: Variables
    """The client's model after training; its `state` is averaged, kept or dropped as `model_state` says."""
    memory: PyTree
    """The client's memory from now on."""
    report: dict[str, Array]


class Aggregate(NamedTuple):
    """What an algorithm's server function is given."""

    tree: dict[str, PyTree]
    """Weighted mean of the contributions, or what an aggregator makes of them."""
    weight: Array
    """float32: sum of the weights of the contributions in it."""
    num_clients: int
    """All registered clients."""
    lowest: PyTree
    """Smallest of each watched value over the contributions in it."""
    highest: PyTree
    """Largest likewise."""


class ServerOutput(NamedTuple):
    """What an algorithm's server function returns."""

    params: PyTree
    """The new global model."""
    memory: PyTree = ()
    """What else the server remembers from now on."""
    report: Mapping[str, Array | Ratio] = {}
    """What is worth logging about the step."""


def nothing(*_: Any) -> tuple:
    """The empty memory."""
    return ()


def mean_update(params: PyTree, mean: Aggregate) -> PyTree:
    """The average change of the model, new minus old, whichever of `update` and `params` the clients sent."""
    if "update" in mean.tree:
        return mean.tree["update"]
    return trees.subtract(mean.tree["params"], params)


def outgoing(payload: str, new: PyTree, received: PyTree) -> dict[str, PyTree]:
    """The contribution that carries a trained model: as `params`, or as `update`, its difference from what came."""
    return {"params": new} if payload == "params" else {"update": trees.subtract(new, received)}


def check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError naming the allowed values unless `given` is one of them."""
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {given!r}")


def from_parts(
    local: LocalTraining,
    *,
    client: Callable[[Variables, PyTree, PyTree, ClientRows, Key, Array], ClientOutput],
    server: Callable[[ServerState, Aggregate, Key], ServerOutput],
    init: Callable[[Variables], PyTree] = nothing,
    init_client: Callable[[Variables], PyTree] = nothing,
    extra: Callable[[ServerState], dict[str, PyTree]] = lambda state: {},
    watch: Callable[[dict[str, PyTree]], PyTree] = nothing,
    model_state: str = "average",
    aggregate: Aggregator | None = None,
    private: Split = ALL_PUBLIC,
    steps: Callable[[Array], Array] | None = None,
) -> Algorithm:
    """An `Algorithm` of the usual shape.

    Args:
      local: how its clients train.
      client: `(start, extra, memory, rows, key, round_number) -> ClientOutput`: one client's work. `start` is the
        received model.
      server: `(state, mean, key) -> ServerOutput`: the server's step.
      init: initial variables to the server's memory.
      init_client: initial variables to one client's memory.
      extra: what travels down beside the model, by name.
      watch: a decoded contribution to the values in it whose extremes over clients the server wants
        (`Aggregate.lowest`).
      model_state: what becomes of state such as batch statistics: `average` (sent both ways and averaged like
        parameters), `local` (each client keeps its own, nothing travels), `fixed` (every client starts from the
        initial one, nothing travels).
      aggregate: what stands in for the weighted mean, from `algorithms.aggregators`. It sees changes: contributions
        less what the client received, `params` and `state`; others are taken for changes already.
      private: which parameters are each client's own. The client function trains whole models; of the `params` and the
        `update` that it sends the private part is kept back. The server function is given, and gives, the public part.
      steps: examples of a client to the local steps that it takes, where these aren't those of the batch plan.
    """
    check_choice("model_state", model_state, MODEL_STATE)

    def start_state(variables: Variables) -> ServerState:
        return ServerState(variables, init(variables._replace(params=private.cut(variables.params)[0])))

    def start_client(variables: Variables) -> PyTree:
        own = {"model_state": variables.state} if model_state == "local" else {}
        kept = private.cut(variables.params)[1]
        return own | ({"private": kept} if kept else {}) | {"memory": init_client(variables)}

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        down_key, client_key, server_key = jax.random.split(key, 3)
        (params, kept), model = private.cut(state.variables.params), state.variables.state
        tree = {"params": params, "extra": extra(state)} | ({"state": model} if model_state == "average" else {})
        received, link = link.broadcast(down_key, tree, cohort)

        def run(shared, own, rows, key):
            received, model, round_number = shared
            whole = private.merge(received["params"], own.get("private", {}))
            start = Variables(whole, own.get("model_state", received.get("state", model)))
            out = client(start, received["extra"], own["memory"], rows, key, round_number)
            sent = {n: private.cut(x)[0] if n in ("params", "update") else x for n, x in out.sent.items()}
            new = {"memory": out.memory}
            report = out.report
            if "private" in own:
                new |= {"private": private.cut(out.variables.params)[1]}
                report = checked(report, new["private"])
            if model_state == "average":
                sent = sent | {"state": out.variables.state}
            elif model_state == "local":
                new |= {"model_state": out.variables.state}
            return Contribution(sent, out.weight, new, report)

        shared = received, model, link.round_number
        origin = {name: received[name] for name in ("params", "state") if name in received}
        reduced, client_states, link = link.map_clients(
            run, shared, cohort, client_key, watch=watch, aggregate=aggregate, origin=origin, steps=taken(cohort)
        )
        mean = Aggregate(reduced.mean, reduced.weight, link.num_clients, reduced.lowest, reduced.highest)
        with jax.named_scope("server"):
            public = state._replace(variables=Variables(params, model))
            step = server(public, mean, server_key)
        new = Variables(private.merge(step.params, kept), reduced.mean.get("state", model))
        stepped = ServerState(new, step.memory)
        new_state = trees.select(reduced.weight > 0, stepped, state)
        report = {**reduced.report, **step.report, "clients": reduced.clients}
        return RoundOutput(new_state, client_states, link, report)

    def taken(cohort: Cohort) -> Array | None:
        return None if steps is None else steps(cohort.size)

    def personal(state: ServerState, own: PyTree) -> Variables:
        """The global model with what of it is the client's own."""
        params = private.cut(state.variables.params)[0]
        model = own.get("model_state", state.variables.state)
        return Variables(private.merge(params, own.get("private", {})), model)

    return Algorithm(local, start_state, start_client, round_, lambda state: state.variables, personal=personal)
