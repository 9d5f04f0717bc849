"""Algorithms of the usual shape (send, train, aggregate, step) from a client function and a server function.

    received = link.broadcast({params, state, extra})                 one message for the cohort
    mean     = link.map_clients(client, received)                     weighted mean of decoded contributions
    params, memory, report = server(state, mean, key)

A round without a usable contribution changes nothing.

With `private` a part of the parameters is each client's own. It stays with the client, which remembers it; the
rest, the public part, is broadcast, sent, averaged and counted. The server keeps the private part as initialized,
from which every client starts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from fedjax8 import trees
from fedjax8.algorithms.lockstep import nan_if_unusable
from fedjax8.codecs.none import none
from fedjax8.codecs.per_path import per_path
from fedjax8.errors import UserError
from fedjax8.local import check_not_kept
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
_FIRST = (1 << 31) - 4
"""Folded into the round's key for the first exchange; far from the small numbers that splitting a key uses."""


class ServerState(NamedTuple):
    """State of every algorithm made by `from_parts`."""

    variables: Variables
    """The global model, float32."""
    memory: PyTree
    """The server's memory beside the model: an optimizer's moments, control variates."""


class ClientOutput(NamedTuple):
    """Result of one client's work: trees to send, and its new memory."""

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
    optimizer: PyTree = ()
    """`Trained.optimizer`: kept for the client's next round where `local_training(keep_optimizer=True)` says so."""


class FirstExchange(NamedTuple):
    """An exchange before training: clients send trees, whose weighted mean the server sends to all of them."""

    name: str
    """Name of its messages, both ways; the mean is `extra[name]` of the client's function."""
    client: Callable[[Variables, dict[str, PyTree], ClientRows, Key], tuple[dict[str, PyTree], Array]]
    """`(start, extra, rows, key) -> (trees to send, weight)`."""
    steps: Callable[[Array], Array]
    """int32 sizes of clients to the local steps that it takes as long as."""


class Aggregate(NamedTuple):
    """Aggregate of a round's contributions, as the server function gets it."""

    tree: dict[str, PyTree]
    """Weighted mean of the contributions, or the result of an aggregator."""
    weight: Array
    """float32: sum of the weights of the contributions in it."""
    num_clients: int
    """All registered clients."""
    lowest: PyTree
    """Smallest of each watched value over the contributions in it."""
    highest: PyTree
    """Largest likewise."""
    first: PyTree = ()
    """Weighted mean of the first exchange, where there is one."""


class ServerOutput(NamedTuple):
    """Result of the server's step."""

    params: PyTree
    """The new global model."""
    memory: PyTree = ()
    """The server's memory from now on."""
    report: Mapping[str, Array | Ratio] = {}
    """Values of the step for the log."""


def nothing(*_: Any) -> tuple:
    """The empty memory."""
    return ()


def mean_update(params: PyTree, mean: Aggregate) -> PyTree:
    """The average change of the model, new minus old, whichever of `update` and `params` the clients sent."""
    if "update" in mean.tree:
        return mean.tree["update"]
    return trees.subtract(mean.tree["params"], params)


def outgoing(payload: str, new: PyTree, received: PyTree) -> dict[str, PyTree]:
    """The contribution that carries a trained model: as `params`, or as `update`, its difference from the received
    one."""
    return {"params": new} if payload == "params" else {"update": trees.subtract(new, received)}


def check_choice(name: str, given: str, allowed: tuple[str, ...]) -> None:
    """Raises ValueError naming the allowed values unless `given` is one of them."""
    if given not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {given!r}")


ClientWork = Callable[[Variables, PyTree, PyTree, ClientRows, Key, Array], ClientOutput]
"""`(start, extra, memory, rows, key, round_number) -> ClientOutput`: one client's work in a round."""

ServerStep = Callable[[ServerState, Aggregate, Key], ServerOutput]
"""`(state, mean, key) -> ServerOutput`: the server's step at the end of a round."""


def from_parts(
    local: LocalTraining,
    *,
    client: ClientWork,
    server: ServerStep,
    init: Callable[[Variables], PyTree] = nothing,
    init_client: Callable[[Variables], PyTree] = nothing,
    extra: Callable[[ServerState], dict[str, PyTree]] = lambda state: {},
    watch: Callable[[dict[str, PyTree]], PyTree] = nothing,
    model_state: str = "average",
    aggregate: Aggregator | None = None,
    always: bool = False,
    plain: Sequence[str] = (),
    first: FirstExchange | None = None,
    private: Split = ALL_PUBLIC,
    steps: Callable[[Array], Array] | None = None,
) -> Algorithm:
    """An `Algorithm` of the usual shape.

    Args:
      local: the clients' local training.
      client: `(start, extra, memory, rows, key, round_number) -> ClientOutput`: one client's work. `start` is the
        received model.
      server: `(state, mean, key) -> ServerOutput`: the server's step.
      init: initial variables to the server's memory.
      init_client: initial variables to one client's memory.
      extra: trees that travel down beside the model, by name.
      watch: a decoded contribution to the values in it whose extremes over clients the server wants
        (`Aggregate.lowest`).
      model_state: treatment of state such as batch statistics: `average` (sent both ways and averaged like
        parameters), `local` (each client keeps its own, nothing travels), `fixed` (every client starts from the
        initial one, nothing travels).
      aggregate: the aggregation rule, from `algorithms.aggregators`; by default the weighted mean. It sees changes:
        `params` and `state` minus the received ones; other entries count as changes already.
      always: whether the server steps in rounds without any contribution too, with a mean of zeros. By default nothing
        changes in them.
      plain: names of single numbers in a contribution, such as a divisor, that travel as float32 whatever the codec.
      first: an exchange before clients train. It has the same codecs and aggregator.
      private: which parameters are each client's own. The client function trains whole models; of the `params` and the
        `update` that it sends the private part is kept back. The server function is given, and gives, the public part.
      steps: examples of a client to the local steps that it takes, where these aren't those of the batch plan.
    """
    check_choice("model_state", model_state, MODEL_STATE)
    if always and model_state == "average":
        raise ValueError("with always=True model_state must be local or fixed: a round may have nobody to average")

    def start_state(variables: Variables) -> ServerState:
        return ServerState(variables, init(variables._replace(params=private.cut(variables.params)[0])))

    def start_client(variables: Variables) -> PyTree:
        own = {"model_state": variables.state} if model_state == "local" else {}
        own |= {"optimizer": local.optimizer.init(variables.params)} if local.keep_optimizer else {}
        if local.keep_optimizer and not jax.tree.leaves(own["optimizer"]):
            raise UserError("keep_optimizer=True changes nothing: the clients' optimizer has no state; leave it out")
        kept = private.cut(variables.params)[1]
        return own | ({"private": kept} if kept else {}) | {"memory": init_client(variables)}

    def round_(link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        codec = per_path({name: none() for name in plain}, link.uplink) if plain else None
        down_key, client_key, server_key = jax.random.split(key, 3)
        (params, kept), model = private.cut(state.variables.params), state.variables.state
        tree = {"params": params, "extra": extra(state)} | ({"state": model} if model_state == "average" else {})
        received, link = link.broadcast(down_key, tree, cohort)

        def start_of(received: PyTree, own: PyTree) -> Variables:
            whole = private.merge(received["params"], own.get("private", {}))
            return Variables(whole, own.get("model_state", received["state"]))

        def with_state(received: PyTree) -> PyTree:
            """The model that clients start from, with the server's model state where none travels."""
            return {"state": model} | received

        first_mean: PyTree = ()
        excluded: Any = 0
        if first is not None:

            def ask(received, own, rows, key):
                sent, weight = first.client(start_of(received, own), received["extra"], rows, key)
                return Contribution(sent, weight, own, {})

            ask_key, tell_key = jax.random.split(jax.random.fold_in(key, _FIRST))
            answers, states, link = link.map_clients(
                ask,
                with_state(received),
                cohort,
                ask_key,
                first.name,
                aggregate=aggregate,
                origin={},
                steps=first.steps(cohort.size),
            )
            first_mean, excluded = answers.mean, answers.report["excluded"]
            cohort = cohort._replace(states=states)
            mean, link = link.broadcast(tell_key, first_mean, cohort._replace(valid=cohort.reached), first.name)
            received = received | {"extra": received["extra"] | {first.name: mean}}

        def run(shared, own, rows, key):
            received, round_number = shared
            start = start_of(received, own)
            rows = rows._replace(optimizer=own["optimizer"]) if local.keep_optimizer else rows
            out = client(start, received["extra"], own["memory"], rows, key, round_number)
            sent = {n: private.cut(x)[0] if n in ("params", "update") else x for n, x in out.sent.items()}
            new = {"memory": out.memory}
            if local.keep_optimizer:
                if not jax.tree.leaves(out.optimizer):
                    check_not_kept(local, "this algorithm's client does not hand it on as ClientOutput.optimizer")
                new |= {"optimizer": out.optimizer}
            report = out.report
            if "private" in own:
                new |= {"private": private.cut(out.variables.params)[1]}
                report = nan_if_unusable(report, new["private"])
            if model_state == "average":
                sent = sent | {"state": out.variables.state}
            elif model_state == "local":
                new |= {"model_state": out.variables.state}
            return Contribution(sent, out.weight, new, report)

        shared = with_state(received), link.round_number
        origin = {name: received[name] for name in ("params", "state") if name in received}
        reduced, client_states, link = link.map_clients(
            run,
            shared,
            cohort,
            client_key,
            codec=codec,
            watch=watch,
            aggregate=aggregate,
            origin=origin,
            steps=None if steps is None else steps(cohort.size),
        )
        mean = Aggregate(reduced.mean, reduced.weight, link.num_clients, reduced.lowest, reduced.highest, first_mean)
        with jax.named_scope("server"):
            public = state._replace(variables=Variables(params, model))
            step = server(public, mean, server_key)
        new = Variables(private.merge(step.params, kept), reduced.mean.get("state", model))
        stepped = ServerState(new, step.memory)
        new_state = stepped if always else trees.select(reduced.weight > 0, stepped, state)
        report: dict[str, Any] = {**reduced.report, **step.report, "clients": reduced.clients}
        report["excluded"] += excluded
        return RoundOutput(new_state, client_states, link, report)

    def personal(state: ServerState, own: PyTree) -> Variables:
        """The global model with the client's own part."""
        params = private.cut(state.variables.params)[0]
        model = own.get("model_state", state.variables.state)
        return Variables(private.merge(params, own.get("private", {})), model)

    return Algorithm(local, start_state, start_client, round_, lambda state: state.variables, personal=personal)
