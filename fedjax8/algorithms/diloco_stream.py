"""The round of streaming DiLoCo: parts that synchronize one after another while training goes on; see `diloco`."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from fedjax8 import trees
from fedjax8.algorithms import lockstep
from fedjax8.algorithms.fedavg import client_weight
from fedjax8.algorithms.layers import layers_of
from fedjax8.algorithms.parts import outgoing
from fedjax8.errors import UserError
from fedjax8.keys import as_key
from fedjax8.types import (
    MODEL,
    Aggregator,
    Algorithm,
    Array,
    Channel,
    ClientRows,
    Cohort,
    Contribution,
    Key,
    Link,
    LocalTraining,
    Partial,
    PyTree,
    RoundOutput,
    Training,
    Variables,
    Way,
)

START = "start"
"""Name of the message with the initial model."""


class DilocoState(NamedTuple):
    """State of the server of streaming DiLoCo."""

    variables: Variables
    """The global model, float32."""
    common: Variables
    """The same as clients decoded it: g of every part."""
    memory: dict[str, PyTree]
    """State of each part's outer optimizer."""
    exchanges: Array
    """int32: exchanges done."""


class InRound(NamedTuple):
    """A client's memory during a cycle."""

    worker: lockstep.Worker
    """Model, inner optimizer, and the number of the last exchange in which it was used."""
    words: Array
    """uint32 `[2]`: key of the cycle's batches, the same for all of its exchanges."""
    used: Array
    """int32: calls of this cycle whose result could be used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Streaming:
    """The round of streaming DiLoCo; the fields are the arguments of `diloco`."""

    local: LocalTraining
    optimizer: optax.GradientTransformation
    parts: int = 1
    delay: int = 0
    mixing: float = 0.0
    weighting: str = "uniform"
    model_state: str = "average"
    aggregate: Aggregator | None = None

    def algorithm(self) -> Algorithm:
        """The algorithm."""
        variables = lambda state: state.variables
        return Algorithm(self.local, self.init, self.start, self.round, variables, everyone=True, ways=self.ways)

    def start(self, variables: Variables) -> lockstep.Worker:
        """A client's memory before its first round: behind, so that it begins with the first model that it receives."""
        return lockstep.start_worker(self.local, variables)._replace(steps=jnp.int32(-1))

    def ways(self, channels: Sequence[Channel], steps: int, clients: int) -> Sequence[Way]:
        """Every part once, and the initial model in the first round alone."""
        return {c: 1 for c in channels if c.name != START and not c.part}, dict.fromkeys(channels, 1)

    def init(self, variables: Variables) -> DilocoState:
        """The server's state before the first round."""
        split = parts_of(variables.params, self.parts)
        memory = {name: self.optimizer.init(split.cut(variables.params, name)) for name in split.names}
        return DilocoState(variables, variables, memory, jnp.int32(0))

    def round(self, link: Link, state: DilocoState, cohort: Cohort, key: Key) -> RoundOutput:
        """One cycle: all parts synchronize once."""
        start_key, train_key, exchange_key = jax.random.split(key, 3)
        before = cohort.states
        state, link = self._begin(link, state, cohort, start_key)
        words = lockstep.on_all(cohort.ids, jax.random.key_data(train_key))
        cohort = cohort.remember(InRound(cohort.memory, words, jnp.zeros_like(cohort.ids)))
        length = lockstep.steps_for_all(self.local, link, cohort, train_key)
        some_rows = ClientRows(link.pool, cohort.start[0], cohort.size[0])
        report: dict[str, Any] = lockstep.no_report(self.local, state.common, some_rows)
        calls, clients = 0, jnp.int32(0)
        names = parts_of(state.variables.params, self.parts).names
        order = [*names[1:], names[0]]
        for place, name in enumerate(order):
            first, end = place * length // self.parts, (place + 1) * length // self.parts
            arriving = order[place - 1]  # the part that was synchronized last
            middle = jnp.minimum(first + self.delay, end)
            up_key, down_key = jax.random.split(jax.random.fold_in(exchange_key, place))
            keys = (train_key if calls == 0 and not self.delay else up_key), down_key
            if self.delay:
                # The messages of part `arriving` are under way while these steps go on.
                cohort, sums, link = self._train_on(link, state, cohort, train_key, first, middle, calls == 0)
                report, calls = trees.add(report, sums), calls + 1
            link = link.wait(cohort)  # here the part `arriving` has to be with every client
            cohort, state, sums, clients, link = self._exchange(
                link, state, cohort, keys, name, arriving, middle, end, calls == 0
            )
            report, calls = trees.add(report, sums), calls + 1
        excluded = link.count(cohort.reached & (cohort.memory.used < calls))
        states = before | cohort.states | {"algorithm": cohort.memory.worker}
        report |= {"clients": clients, "excluded": excluded, "exchanges": state.exchanges}
        return RoundOutput(state, states, link, report)

    def _begin(self, link: Link, state: DilocoState, cohort: Cohort, key: Key) -> tuple[DilocoState, Link]:
        """The state with the initial model as clients received it, which is sent before the first round."""

        def first(operands):
            link, state = operands
            tree = {"params": state.common.params}
            received, link = link.broadcast(key, tree, cohort, START)
            return link, state._replace(common=state.common._replace(params=received["params"]))

        link, state = jax.lax.cond(link.round_number == 0, first, lambda operands: operands, (link, state))
        return state, link

    def _trained(
        self, state: DilocoState, at: InRound, rows: ClientRows, first: Array | int, end: Array | int
    ) -> tuple[InRound, dict[str, Array]]:
        """(a worker after local steps `first` to `end - 1` of the cycle, sums of its report)."""
        nothing = lockstep.no_report(self.local, at.worker.variables, rows)
        begun = Training(at.worker.variables, at.worker.optimizer, nothing, state.common.params)
        count = jnp.where(rows.size > 0, end - first, 0)
        done = self.local.advance(begun, rows, as_key(at.words), first, count)
        worker = at.worker._replace(variables=done.variables, optimizer=done.optimizer)
        report = lockstep.nan_if_unusable(done.report, done.variables)
        return at._replace(worker=worker, used=at.used + 1), report

    def _train_on(
        self,
        link: Link,
        state: DilocoState,
        cohort: Cohort,
        key: Key,
        first: Array | int,
        end: Array | int,
        begins: bool,
    ) -> tuple[Cohort, dict[str, Array], Link]:
        """(cohort, report, link) after local steps without a message."""

        def work(state, at, rows, key):
            at = at._replace(words=jax.random.key_data(key)) if begins else at
            at, report = self._trained(state, self._in_step(state, at), rows, first, end)
            return Partial(report), at

        totals, _, states, link = link.on_clients(work, state, cohort, key, steps=end - first)
        return cohort._replace(states=states), totals.sum, link

    def _in_step(self, state: DilocoState, at: InRound) -> InRound:
        """The worker; with the common model if it is behind, since it was not used in the last exchange."""
        worker = at.worker
        params = trees.select(worker.steps != state.exchanges, state.common.params, worker.variables.params)
        variables = worker.variables._replace(params=params)
        return at._replace(worker=worker._replace(variables=variables, steps=state.exchanges))

    def _arrived(self, state: DilocoState, variables: Variables, arriving: str) -> Variables:
        """A worker's model when the part `arriving` comes, unless no part was synchronized yet."""
        split = parts_of(variables.params, self.parts)
        mixed = split.cut(state.common.params, arriving)
        if self.mixing:
            mix = lambda own, new: self.mixing * own + (1 - self.mixing) * new
            mixed = jax.tree.map(mix, split.cut(variables.params, arriving), mixed)
        params = self.local.model.project(split.put(variables.params, mixed))
        brings_state = arriving == split.names[0] and self.model_state != "local"
        model = state.common.state if brings_state else variables.state
        return trees.select(state.exchanges > 0, Variables(params, model), variables)

    def _exchange(
        self,
        link: Link,
        state: DilocoState,
        cohort: Cohort,
        keys: tuple[Key, Key],
        name: str,
        arriving: str,
        first: Array | int,
        end: Array | int,
        begins: bool,
    ) -> tuple[Cohort, DilocoState, dict[str, Array], Array, Link]:
        """Clients use the part `arriving`, train, and synchronize the part `name`: (cohort, state, report, int32
        clients, link).

        `keys` are those of clients and of the broadcast; in the first call of a cycle (`begins`) the clients' give
        the cycle's batches.
        """
        split = parts_of(state.variables.params, self.parts)
        with_state = name == split.names[0] and self.model_state == "average"
        channel = MODEL if self.parts == 1 else f"{MODEL}/{name}"

        def work(state, at, rows, key):
            at = at._replace(words=jax.random.key_data(key)) if begins else at
            at = self._in_step(state, at)
            variables = self._arrived(state, at.worker.variables, arriving)
            at = at._replace(worker=at.worker._replace(variables=variables))
            at, report = self._trained(state, at, rows, first, end)
            new = at.worker.variables
            sent = outgoing("update", split.cut(new.params, name), split.cut(state.common.params, name))
            sent |= {"state": new.state} if with_state else {}
            at = at._replace(worker=at.worker._replace(steps=state.exchanges + 1))
            return Contribution(sent, client_weight(self.weighting, rows.size), at, report)

        under_way = self.delay > 0  # both messages may take as long as the next `delay` steps
        reduced, states, link = link.map_clients(
            work,
            state,
            cohort,
            keys[0],
            channel,
            aggregate=self.aggregate,
            origin={"state": state.common.state} if with_state else {},
            steps=end - first,
            background=under_way,
        )
        old, memory = split.cut(state.variables.params, name), state.memory[name]
        new, memory = outer_step(self.local, self.optimizer, old, reduced.mean["update"], memory)
        params = self.local.model.project(split.put(state.variables.params, new))
        model = reduced.mean["state"] if with_state else state.variables.state
        stepped = state._replace(variables=Variables(params, model), memory=state.memory | {name: memory})
        state = trees.select(reduced.weight > 0, stepped, state)
        tree = {"params": split.cut(state.variables.params, name)}
        tree |= {"state": state.variables.state} if with_state else {}
        received, link = link.broadcast(keys[1], tree, cohort, channel, background=under_way)
        common = Variables(
            split.put(state.common.params, received["params"]), received.get("state", state.common.state)
        )
        state = state._replace(common=common, exchanges=state.exchanges + 1)
        report = {what: x for what, x in reduced.report.items() if what != "excluded"}
        return cohort._replace(states=states), state, report, reduced.clients, link


class Parts(NamedTuple):
    """The parts of a model that synchronize by themselves."""

    names: tuple[str, ...]
    paths: Mapping[str, tuple[tuple, ...]]
    """Part to the paths of its leaves."""

    def cut(self, params: PyTree, name: str) -> PyTree:
        """The parameters of a part."""
        if len(self.names) == 1:
            return params
        leaves = flatten_dict(params)
        return unflatten_dict({path: leaves[path] for path in self.paths[name]})

    def put(self, params: PyTree, part: PyTree) -> PyTree:
        """The parameters with those of a part in place."""
        return part if len(self.names) == 1 else unflatten_dict({**flatten_dict(params), **flatten_dict(part)})


def parts_of(params: PyTree, parts: int) -> Parts:
    """Layer i, as `layers_of` orders them, in part i mod `parts`. UserError if layers are fewer."""
    if parts == 1:
        return Parts(("part_0",), {})
    layers = layers_of(params)
    if len(layers) < parts:
        raise UserError(f"diloco: parts must be at most the model's {len(layers)} layers, got {parts}")
    paths = {f"part_{p}": tuple(path for layer in layers[p::parts] for path in layer) for p in range(parts)}
    return Parts(tuple(paths), paths)


def outer_step(
    local: LocalTraining, optimizer: optax.GradientTransformation, params: PyTree, update: PyTree, memory: PyTree
) -> tuple[PyTree, PyTree]:
    """(params, memory) after the outer optimizer's step on the mean update, new minus old, of these params."""
    steps, memory = optimizer.update(trees.scale(-1.0, update), memory, params)
    return optax.apply_updates(params, steps), memory
