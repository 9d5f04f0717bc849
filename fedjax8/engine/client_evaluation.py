"""Personalized evaluation: accuracy and loss of every client's own model on its own held-out rows.

    for each client:   y = Algorithm.personal(server state, memory);   a few local steps on its training rows, if asked
                       sums of loss and metrics over its held-out rows, batch by batch

The executor maps clients as it does in a round: over devices and processes, a chunk at a time. Many clients are
evaluated in several calls of equal width, so that one program serves all. Nothing is sent
and nothing is counted; no state changes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.data.federated import FederatedData
from fedjax8.engine.evaluation import BATCH_SIZE, BYTES_AT_ONCE, largest_array
from fedjax8.engine.feeding import Feed, Rows
from fedjax8.engine.fit import Fit
from fedjax8.engine.planning import Plan
from fedjax8.engine.states.client_states import ClientStates
from fedjax8.errors import UserError
from fedjax8.executors import padded
from fedjax8.types import Algorithm, Array, ClientRows, Executor, Key, Partial, Pool, Program, PyTree

CLIENTS_PER_CALL = 1024
"""Clients of one call on one device, at most: enough for the host's part to vanish."""
MEMORY_BYTES = 1 << 27
"""Bytes of the memories of a call's clients, on one device."""


class ClientScores(NamedTuple):
    """Metrics of clients' own models on their own held-out rows, of the `n` clients that have such rows."""

    ids: np.ndarray
    """int32 `[n]`."""
    counts: np.ndarray
    """int64 `[n]`: held-out rows."""
    metrics: dict[str, np.ndarray]
    """float64 `[n]`: means over a client's rows of `loss` and of each metric of the model, such as `accuracy`."""
    without_rows: int
    """Clients that were asked for and left out, since they have no held-out rows."""
    names: tuple[str, ...] = ()
    """Their ids in the data; empty where it names no clients."""


class Asked(NamedTuple):
    """Arguments of a personalized evaluation."""

    server: PyTree
    """The algorithm's server state."""
    frozen: PyTree
    """Frozen parameters as initialized, placed on the devices."""
    memories: ClientStates
    """Memories of all clients."""
    ids: np.ndarray
    """int32 `[n]`: different clients."""
    held: FederatedData
    """Held-out rows by client."""
    tuning: "FineTuning"


def check_fine_tuning(algorithm: Algorithm, steps: int) -> None:
    """UserError if clients' steps before an evaluation would be of an algorithm that states an epsilon."""
    if steps and algorithm.privacy(1):
        raise UserError("fine_tune_steps are not accounted for, and this run states an epsilon; leave them out (0)")


class FineTuning(NamedTuple):
    """Training of clients before they are evaluated."""

    steps: int
    """Local steps; 0 for none."""
    key: Key
    """Every draw comes from it and the client."""
    at_once: int
    """Clients that train in one call, at most: as many as in a round, whose rows are known to fit."""
    feed: Callable[[], Feed]
    """The feed of their rows."""
    round_number: int
    """int32: whose rate they take where rates follow a schedule: that of the last round done."""
    step_scale: float
    """Factor on their steps, as in that round."""


@dataclasses.dataclass(frozen=True, eq=False)
class ClientEvaluation:
    """Evaluation of clients' own models: compiled once, and held-out columns placed once as long as they are the
    same."""

    algorithm: Algorithm
    executor: Executor
    fit: Fit
    num_clients: int
    _placed: list[tuple[Mapping[str, np.ndarray], PyTree]] = dataclasses.field(default_factory=list)
    _compiled: dict[tuple[int, int], Program] = dataclasses.field(default_factory=dict)

    def scores(self, asked: Asked) -> ClientScores:
        """Scores of the clients asked for; see `Simulation.evaluate_clients`."""
        self._check(asked)
        # By way of the host: of runs side by side, servers' states lie on other devices than clients' memories.
        asked = asked._replace(server=self.executor.place(jax.device_get(asked.server)))
        sizes = asked.held.windows(asked.ids)[1]
        shown = np.asarray(asked.ids, np.int32)[sizes > 0]
        if not len(shown):
            raise UserError(f"none of the {len(asked.ids)} clients asked for has held-out rows to be evaluated on")
        columns, width = self._columns(asked.held), self._width(asked, len(shown))
        order = None if asked.held.order is None else self.executor.place(np.asarray(asked.held.order))
        kind = asked.tuning.steps, self._batch_size(asked, columns, int(sizes.max()), width)
        if kind not in self._compiled:
            self._compiled[kind] = self._program(*kind)
        run = self._compiled[kind]
        found: list[dict[str, np.ndarray]] = []
        for first in range(0, len(shown), width):
            ids = np.full(width, self.num_clients, np.int32)
            block = shown[first : first + width]
            ids[: len(block)] = block
            sums = self._call(run, asked, columns, order, ids.reshape(self.executor.num_shards, -1))
            found.append({name: np.asarray(x, np.float64)[: len(block)] for name, x in sums.items()})
        counts = sizes[sizes > 0].astype(np.int64)
        metrics = {name: np.concatenate([sums[name] for sums in found]) / counts for name in found[0]}
        names = () if asked.held.names is None else tuple(asked.held.named(shown))
        return ClientScores(shown, counts, metrics, len(asked.ids) - len(shown), names)

    def _check(self, asked: Asked) -> None:
        ids, steps = np.asarray(asked.ids), asked.tuning.steps
        if asked.held.num_clients != self.num_clients:
            raise UserError(
                f"held-out rows are of {asked.held.num_clients} clients, but {self.num_clients} are registered"
            )
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or len(np.unique(ids)) != len(ids):
            raise UserError(f"ids must be different client numbers [n]; got {ids.dtype} {ids.shape}")
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.num_clients:
            raise UserError(f"ids run from {ids.min()} to {ids.max()}; there are {self.num_clients} clients")
        if steps < 0:
            raise UserError(f"fine_tune_steps is {steps}, but must be at least 0")
        check_fine_tuning(self.algorithm, steps)

    def _columns(self, held: FederatedData) -> PyTree:
        """The held-out columns on the devices."""
        if not self._placed or self._placed[0][0] is not held.columns:
            self.fit.check_other(held.columns, "the clients' held-out rows")
            placed = self.executor.place({name: np.asarray(column) for name, column in held.columns.items()})
            self._placed[:] = [(held.columns, placed)]
        return self._placed[0][1]

    def _width(self, asked: Asked, clients: int) -> int:
        """Clients of a call, on all devices together."""
        of_client = max(1, trees.num_bytes(asked.memories.read(np.zeros(1, np.int32))))
        most, shards = max(1, min(CLIENTS_PER_CALL, MEMORY_BYTES // of_client)), self.executor.num_shards
        most = min(most, -(-asked.tuning.at_once // shards)) if asked.tuning.steps else most
        return shards * padded(min(most, -(-clients // shards)), self.executor.chunk)

    def _batch_size(self, asked: Asked, columns: PyTree, largest: int, width: int) -> int:
        """Rows of a client in one batch: all of the largest client's if they fit."""
        size = min(BATCH_SIZE, 1 << (largest - 1).bit_length())
        at_once = min(self.executor.chunk, width // self.executor.num_shards)
        model = self.algorithm.local.model

        def outputs(server, frozen, memory, columns):
            variables = self.algorithm.variables_of(server, memory)._replace(frozen=frozen)
            batch = {name: c[jnp.zeros(size, jnp.int32)] for name, c in columns.items()} | {"mask": jnp.ones(size)}
            return model.apply(variables, batch)[0]

        memory = jax.tree.map(lambda x: x[0], asked.memories.read(np.zeros(1, np.int32))["algorithm"])
        frozen = self.algorithm.frozen(asked.server, asked.frozen)
        of_row = largest_array(outputs, asked.server, frozen, memory, columns) / size
        return max(1, min(size, int(BYTES_AT_ONCE / (of_row * at_once))))

    def _call(
        self, run: Program, asked: Asked, columns: PyTree, order: PyTree, table: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Sums over held-out rows of the clients in `table` `[shards, c]`."""
        shards = list(self.executor.shards)
        own = table[shards]
        starts, sizes = asked.held.windows(own)
        feed, rows = Feed({}, None, None, _no_rows), None
        if asked.tuning.steps:
            feed = asked.tuning.feed()
            rows = feed.prepare(
                Plan(0, 1, table[:, None], table[:, None], table, (0.0,), table[:, None], (table.size,))
            )
        memories = asked.memories.read(own.reshape(-1))["algorithm"]
        flat = lambda x: np.ascontiguousarray(x).reshape(-1)
        clients = {"id": flat(own), "start": flat(starts.astype(np.int32)), "size": flat(sizes), "memory": memories}
        streamed: PyTree = {}
        if rows is not None:
            clients |= {"train_start": flat(rows.starts), "train_size": flat(rows.sizes)}
            streamed = rows.columns
        shared = (asked.server, asked.frozen, columns, order, feed.columns, feed.order)
        tuning = asked.tuning.key, np.int32(asked.tuning.round_number), np.float32(asked.tuning.step_scale)
        _, sums = run((shared, tuning), (clients, streamed))
        return jax.device_get(self.executor.collect(sums))

    def _program(self, fine_tune_steps: int, batch_size: int) -> Program:
        """`((shared, tuning), (clients, streamed columns)) -> (), {name: sum over held-out rows [c]}`, compiled."""
        algorithm, executor, local = self.algorithm, self.executor, self.algorithm.local
        model = local.model

        def one(shared, client):
            (server, frozen, held, order), (columns, train_order), (key, number, step_scale) = shared
            variables = algorithm.variables_of(server, client["memory"])
            if fine_tune_steps:
                pool = Pool(columns, train_order, frozen, number, step_scale)
                rows = ClientRows(pool, client["train_start"], client["train_size"])
                steps = jnp.where(rows.size > 0, fine_tune_steps, 0)
                own_key = jax.random.fold_in(key, client["id"])
                variables = local.advance(local.start(variables, rows), rows, own_key, 0, steps).variables
            variables = variables._replace(frozen=frozen)

            def of_batch(index: Array) -> dict[str, Array]:
                places = index * batch_size + jnp.arange(batch_size)
                mask = (places < client["size"]).astype(jnp.float32)
                positions = client["start"] + jnp.minimum(places, jnp.maximum(client["size"] - 1, 0))
                numbers = positions if order is None else order[positions]
                batch = {name: c[numbers] for name, c in held.items()} | {"mask": mask}
                outputs, _ = model.apply(variables, batch)
                values = {"loss": model.loss(outputs, batch), **model.metrics(outputs, batch)}
                # A masked row's value may be anything, also NaN.
                return {name: jnp.sum(jnp.where(mask > 0, v, 0.0)) for name, v in values.items()}

            zeros = trees.zeros_like(jax.eval_shape(of_batch, jnp.int32(0)))
            batches = (client["size"] + batch_size - 1) // batch_size
            sums = jax.lax.fori_loop(0, batches, lambda i, total: trees.add(total, of_batch(i)), zeros)
            return Partial(()), sums

        def program(shared, split):
            (server, frozen, held, order, columns, train_order), tuning = shared
            clients, streamed = split
            columns = columns or jax.tree.map(lambda x: x[0], streamed)
            fixed = (server, algorithm.frozen(server, frozen), held, order), (columns, train_order), tuning
            return (), executor.map_reduce(one, fixed, clients)[1]

        return executor.compile(program)


def _no_rows(plan: Plan) -> Rows:
    """The feed of clients that do not train: it is never asked."""
    raise AssertionError("nobody trains")
