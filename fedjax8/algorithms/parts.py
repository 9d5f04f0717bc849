"""Algorithms of the usual shape (send, train, aggregate, step) from a client function and a server function.

    received = link.broadcast({params, state, extra})                 one message for the cohort
    mean     = link.map_clients(client, received)                     weighted mean of decoded contributions
    params, memory, report = server(state, mean, key)

A round without a usable contribution changes nothing.

With `private` a part of the parameters is each client's own. It stays with the client, which remembers it; the
rest, the public part, is broadcast, sent, averaged and counted. The server keeps the private part as initialized,
from which every client starts.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    Codec,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    PyTree,
    Ratio,
    Reduced,
    RoundOutput,
    Variables,
)

MODEL_STATE = ("average", "local", "fixed")
_FIRST = (1 << 31) - 4
"""Folded into the round's key for the first exchange; far from the small numbers that splitting a key uses."""
_WHOLE = "weight_without_factor"
"""Report of a client's weight before its factor by age."""
_HEARD = "heard"
"""Entry of a client's memory between the first exchange and training: whether its message was used."""


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
    """An exchange before training: clients send trees, whose weighted mean the server sends to all of them.

    A client whose message is lost or cannot be used is out of the round: it trains on nothing and is counted once.
    """

    name: str
    """Name of its messages, both ways; the mean is `extra[name]` of the client's function."""
    client: Callable[[Variables, dict[str, PyTree], ClientRows, Key], tuple[dict[str, PyTree], Array]]
    """`(start, extra, rows, key) -> (trees to send, weight)`."""
    steps: Callable[[Array], Array]
    """int32 sizes of clients to the local steps that it takes as long as."""
    codec: Codec | None = None
    """The codec of its messages both ways, whose mean is then taken; None: codecs and aggregator of the run."""


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
      first: an exchange before clients train. It has the same codecs and aggregator, unless it names a codec.
      private: which parameters are each client's own. The client function trains whole models; of the `params` and the
        `update` that it sends the private part is kept back. The server function is given, and gives, the public part.
      steps: examples of a client to the local steps that it takes, where these aren't those of the batch plan.
    """
    check_choice("model_state", model_state, MODEL_STATE)
    if always and model_state == "average":
        raise ValueError("with always=True model_state must be local or fixed: a round may have nobody to average")
    usual = UsualRound(
        local,
        client,
        server,
        init,
        init_client,
        extra,
        watch,
        model_state,
        aggregate,
        always,
        tuple(plain),
        first,
        private,
        steps,
    )
    return Algorithm(
        local,
        usual.start_server,
        usual.start_client,
        usual.round,
        lambda state: state.variables,
        personal=usual.personal,
        steps=steps,
        ages=first is None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class UsualRound:
    """The round that `from_parts` makes; the fields are its arguments."""

    local: LocalTraining
    client: ClientWork
    server: ServerStep
    init: Callable[[Variables], PyTree]
    init_client: Callable[[Variables], PyTree]
    extra: Callable[[ServerState], dict[str, PyTree]]
    watch: Callable[[dict[str, PyTree]], PyTree]
    model_state: str
    aggregate: Aggregator | None
    always: bool
    plain: tuple[str, ...]
    first: FirstExchange | None
    private: Split
    steps: Callable[[Array], Array] | None

    def start_server(self, variables: Variables) -> ServerState:
        """The server's state before the first round."""
        public = self.private.cut(variables.params)[0]
        return ServerState(variables, self.init(variables._replace(params=public)))

    def start_client(self, variables: Variables) -> PyTree:
        """A client's memory before its first round."""
        own = {"model_state": variables.state} if self.model_state == "local" else {}
        if self.local.keep_optimizer:
            own |= {"optimizer": self.local.optimizer.init(variables.params)}
            if not jax.tree.leaves(own["optimizer"]):
                raise UserError(
                    "keep_optimizer=True changes nothing: the clients' optimizer has no state; leave it out"
                )
        kept = self.private.cut(variables.params)[1]
        return own | ({"private": kept} if kept else {}) | {"memory": self.init_client(variables)}

    def round(self, link: Link, state: ServerState, cohort: Cohort, key: Key) -> RoundOutput:
        """One round: broadcast, the first exchange if there is one, local training, reduction, the server's step."""
        down_key, client_key, server_key = jax.random.split(key, 3)
        (params, kept), model = self.private.cut(state.variables.params), state.variables.state
        tree = {"params": params, "extra": self.extra(state)}
        tree |= {"state": model} if self.model_state == "average" else {}
        received, link = link.broadcast(down_key, tree, cohort)
        origin = {name: received[name] for name in ("params", "state") if name in received}
        received = {"state": model} | received  # where none travels, clients start from the server's

        first: PyTree = ()
        excluded: Array | int = 0
        if self.first is not None:
            received, first, excluded, cohort, link = self._exchange_first(self.first, link, received, cohort, key)
        reduced, client_states, link = link.map_clients(
            self._trained,
            (received, link.round_number),
            cohort,
            client_key,
            codec=per_path({name: none() for name in self.plain}, link.uplink) if self.plain else None,
            watch=self.watch,
            aggregate=self.aggregate,
            origin=origin,
            steps=None if self.steps is None else self.steps(cohort.size),
        )
        reduced = self._discounted(reduced, state)
        mean = Aggregate(reduced.mean, reduced.weight, link.num_clients, reduced.lowest, reduced.highest, first)
        with jax.named_scope("server"):
            step = self.server(state._replace(variables=Variables(params, model)), mean, server_key)
        new = Variables(self.private.merge(step.params, kept), reduced.mean.get("state", model))
        stepped = ServerState(new, step.memory)
        new_state = stepped if self.always else trees.select(reduced.weight > 0, stepped, state)
        report: dict[str, Any] = {**reduced.report, **step.report, "clients": reduced.clients}
        report["excluded"] += excluded
        return RoundOutput(new_state, client_states, link, report)

    def _discounted(self, reduced: Reduced, state: ServerState) -> Reduced:
        """The aggregate, where clients' updates have factors by their age: sum_i w_i s_i D_i / sum_i w_i, of which the
        weighted mean is sum_i w_i s_i D_i / sum_i w_i s_i."""
        if _WHOLE not in reduced.report:
            return reduced
        report = {name: value for name, value in reduced.report.items() if name != _WHOLE}
        whole = reduced.report[_WHOLE]
        share = reduced.weight / jnp.where(whole > 0, whole, 1.0)
        now = {"params": self.private.cut(state.variables.params)[0], "state": state.variables.state}

        def of(name: str, mean: PyTree) -> PyTree:
            if name in self.plain:
                return mean
            start = now.get(name, trees.zeros_like(mean))
            changed = jax.tree.map(lambda a, b: trees.as_dtype(a + share * (b - a), b.dtype), start, mean)
            return trees.select(share == 1.0, mean, changed)  # the mean itself, which a sum would round

        return reduced._replace(mean={name: of(name, mean) for name, mean in reduced.mean.items()}, report=report)

    def personal(self, state: ServerState, own: PyTree) -> Variables:
        """The global model with the client's own part."""
        return self._start({"params": self.private.cut(state.variables.params)[0], "state": state.variables.state}, own)

    def _start(self, received: PyTree, own: PyTree) -> Variables:
        """The model that a client starts from."""
        whole = self.private.merge(received["params"], own.get("private", {}))
        return Variables(whole, own.get("model_state", received["state"]))

    def _trained(self, shared: PyTree, own: PyTree, rows: ClientRows, key: Key) -> Contribution:
        """A client's work in a round."""
        received, round_number = shared
        received = received | rows.received if rows.received else received
        rows = rows._replace(optimizer=own["optimizer"]) if self.local.keep_optimizer else rows
        out = self.client(self._start(received, own), received["extra"], own["memory"], rows, key, round_number)
        sent = {n: self.private.cut(x)[0] if n in ("params", "update") else x for n, x in out.sent.items()}
        new, report = {"memory": out.memory}, out.report
        if self.local.keep_optimizer:
            if not jax.tree.leaves(out.optimizer):
                check_not_kept(self.local, "this algorithm's client does not hand it on as ClientOutput.optimizer")
            new |= {"optimizer": out.optimizer}
        if "private" in own:
            new |= {"private": self.private.cut(out.variables.params)[1]}
            report = nan_if_unusable(report, new["private"])
        if self.model_state == "average":
            sent = sent | {"state": out.variables.state}
        elif self.model_state == "local":
            new |= {"model_state": out.variables.state}
        if isinstance(rows.factor, tuple):
            return Contribution(sent, out.weight, new, report)
        return Contribution(sent, out.weight * rows.factor, new, report | {_WHOLE: out.weight})

    def _exchange_first(
        self, first: FirstExchange, link: Link, received: PyTree, cohort: Cohort, key: Key
    ) -> tuple[PyTree, PyTree, Array, Cohort, Link]:
        """Before clients train: (received with the mean, the mean, int32 clients left out, cohort, link)."""

        def ask(received, own, rows, key):
            sent, weight = first.client(self._start(received, own), received["extra"], rows, key)
            return Contribution(sent, weight, own | {_HEARD: jnp.array(True)}, {})

        ask_key, answer_key = jax.random.split(jax.random.fold_in(key, _FIRST))
        reduced, states, link = link.map_clients(
            ask,
            received,
            cohort.remember(cohort.memory | {_HEARD: jnp.zeros_like(cohort.valid)}),
            ask_key,
            first.name,
            first.codec,
            aggregate=self.aggregate if first.codec is None else None,
            origin={},
            steps=first.steps(cohort.size),
        )
        cohort = cohort._replace(states=states)
        heard = cohort.memory[_HEARD]
        cohort = cohort.remember({name: x for name, x in cohort.memory.items() if name != _HEARD})
        cohort = cohort._replace(valid=cohort.valid & heard)
        mean, link = link.broadcast(answer_key, reduced.mean, cohort, first.name, first.codec)
        received = received | {"extra": received["extra"] | {first.name: mean}}
        return received, reduced.mean, reduced.report["excluded"], cohort, link
