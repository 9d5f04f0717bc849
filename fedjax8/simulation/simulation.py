"""A federated run as functions of its state: `init`, `run_round`, `evaluate`.

Everything that decides a round is derived from (seed, round number), never carried in a generator: the cohort by
`sample_cohort`, every key by `fold_in`. So a state and its round number are all that a checkpoint needs, and the
result does not depend on devices, chunks or padding beyond the order of float32 summation.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8.cohorts.auto import auto
from fedjax8.cohorts.loop import loop
from fedjax8.data.batches import Pool
from fedjax8.data.federated import FederatedData, sample_cohort
from fedjax8.errors import UserError
from fedjax8.simulation.evaluation import evaluation
from fedjax8.simulation.ledger import Ledger
from fedjax8.simulation.link import DOWN, UP, Discovery, Link, Recorder
from fedjax8.types import Algorithm, Codec, Cohort, Execution, Model, PyTree, Ratio, Variables

CALIBRATION_ROWS = 256
"""Rows of the sample batch that a model is initialized (and its input clips calibrated) on; outside the byte count."""


class SimulationState(NamedTuple):
    """All that a run carries from round to round."""

    round: int
    """Rounds done."""
    server: PyTree
    """The algorithm's server state."""
    down_states: dict[str, PyTree]
    """State of the downlink codec by channel."""
    clients: PyTree
    """Persistent state of all registered clients, leaves `[K, ...]`."""
    ledger: Ledger


class Simulation(NamedTuple):
    """A run; see `simulate`."""

    init: Callable[[], SimulationState]
    place: Callable[[SimulationState], SimulationState]
    """Puts a state (one read from a checkpoint, as NumPy arrays) where rounds expect it."""
    run_round: Callable[[SimulationState], tuple[SimulationState, dict[str, Any]]]
    """State to (next state, metrics of the round: `round`, `train_loss`, bytes, `clients`, ...)."""
    evaluate: Callable[[SimulationState, Mapping[str, np.ndarray]], dict[str, float]]
    """Metrics of the global model on columns `[N, ...]`; compiled again when another mapping than the last is given."""
    variables: Callable[[SimulationState], Variables]
    """The global model."""
    discover: Callable[[], list[Discovery]]
    """Every kind of message of a round with its size, found by tracing the round, which is not run."""


def deal(sizes: np.ndarray, num_shards: int, chunk: int) -> np.ndarray:
    """Positions into `sizes`, int `[C']`, laid out shard after shard; -1 is padding.

    The largest first, dealt to the shards back and forth, so that shards have like work and chunks like lengths. `C'`
    is the smallest multiple of `num_shards * chunk` that holds all clients.
    """
    order = np.argsort(-np.asarray(sizes), kind="stable")
    lanes = num_shards * chunk
    padded = np.full(-(-max(len(order), 1) // lanes) * lanes, -1)
    padded[: len(order)] = order
    hands = padded.reshape(-1, num_shards)
    hands[1::2] = hands[1::2, ::-1]
    return hands.T.reshape(-1)


def sample_batch(data: FederatedData, rows: int = CALIBRATION_ROWS) -> dict[str, jax.Array]:
    """A batch of up to `rows` training rows, evenly spaced over all clients' rows."""
    places = np.linspace(0, len(data.order) - 1, min(rows, len(data.order))).astype(np.int64)
    batch = {name: jnp.asarray(column[data.order[places]]) for name, column in data.columns.items()}
    return batch | {"mask": jnp.ones(len(places), jnp.float32)}


def simulate(
    model: Model,
    algorithm: Algorithm,
    data: FederatedData,
    *,
    cohort_size: int,
    uplink: Codec,
    downlink: Codec,
    seed: int = 0,
    execution: Execution | None = None,
) -> Simulation:
    """A federated run of `algorithm` on `data`.

    Args:
      model: what is trained; gives initial variables and evaluation.
      algorithm: built over a `local_training` of the same model.
      data: columns and who owns which row.
      cohort_size: clients a round, drawn without replacement.
      uplink, downlink: codecs of what clients send and what they receive.
      seed: of initialization, cohorts and all training randomness.
      execution: how clients are mapped over devices; default `cohorts.auto`.

    Raises:
      UserError: if the cohort is larger than the number of clients, or clients have no data at all.
    """
    num_clients = data.num_clients
    if not 1 <= cohort_size <= num_clients:
        raise UserError(f"cohort_size is {cohort_size}, but must be between 1 and the number of clients, {num_clients}")
    if not np.any(data.sizes):
        raise UserError(f"none of the {num_clients} clients has any data")
    execution = auto() if execution is None else execution
    root = jax.random.key(seed)
    pool = execution.place(Pool({n: np.asarray(c) for n, c in data.columns.items()}, np.asarray(data.order)))
    starts, sizes = np.asarray(data.starts), np.asarray(data.sizes)

    def round_program(shared, cohort, run=execution, recorder=None):
        server, down_states, sent, measured, pool, key, round_number = shared
        settings = {"uplink": uplink, "downlink": downlink, "execution": run, "num_clients": num_clients}
        link = Link(pool, down_states, sent, measured, round_number, recorder=recorder, **settings)
        out = algorithm.round(link, server, cohort, key)
        return (out.state, out.link.down_states, out.link.sent, out.report | out.link.measured), out.client_states

    compiled_round = execution.compile(round_program)
    known: list[tuple[dict, dict]] = []
    gather = jax.jit(lambda tree, ids: jax.tree.map(lambda x: x.at[ids].get(mode="clip"), tree))
    scatter = jax.jit(lambda tree, ids, new: jax.tree.map(lambda x, y: x.at[ids].set(y, mode="drop"), tree, new))

    def make_cohort(ids: np.ndarray, states: PyTree) -> Cohort:
        """Of clients `ids`, where `num_clients` stands for padding."""
        valid = ids < num_clients
        real = np.where(valid, ids, 0)
        start, size = starts[real].astype(np.int32), np.where(valid, sizes[real], 0).astype(np.int32)
        return Cohort(ids.astype(np.int32), start, size, valid, states)

    def initial() -> tuple[Variables, PyTree, PyTree]:
        variables = jax.jit(model.init)(jax.random.fold_in(root, 0), sample_batch(data))
        return variables, algorithm.init(variables), algorithm.init_client(variables)

    def discover_from(server: PyTree, client: PyTree) -> list[Discovery]:
        recorder = Recorder()
        states = jax.tree.map(lambda x: jnp.asarray(x)[None], {"algorithm": client, "uplink": {}})
        shared = (server, {}, {}, {}, pool, root, jnp.int32(0))
        jax.eval_shape(
            lambda shared, cohort: round_program(shared, cohort, loop(), recorder)[0][3],
            shared,
            make_cohort(np.zeros(1, np.int32), states),
        )
        return recorder.found

    def init() -> SimulationState:
        _, server, client = initial()
        found = discover_from(server, client)
        known[:] = [zero_counts(found)]
        down, up = (
            {d.channel.name: d.codec.init(d.tree) for d in found if d.channel.direction == direction}
            for direction in (DOWN, UP)
        )
        own = {"algorithm": client, "uplink": up}
        clients = jax.tree.map(lambda x: jnp.tile(jnp.asarray(x)[None], (num_clients,) + (1,) * jnp.ndim(x)), own)
        return place(SimulationState(0, server, down, clients, Ledger()))

    def place(state: SimulationState) -> SimulationState:
        arrays = execution.place((state.server, state.down_states, state.clients))
        return state._replace(server=arrays[0], down_states=arrays[1], clients=arrays[2])

    def counts(state: SimulationState) -> tuple[dict, dict]:
        """`zero_counts` of this run, found again for a state that did not come from `init`."""
        if not known:
            one = jax.tree.map(lambda x: x[0], state.clients)
            known[:] = [zero_counts(discover_from(state.server, one["algorithm"]))]
        return known[0]

    def run_round(state: SimulationState) -> tuple[SimulationState, dict[str, Any]]:
        ids = sample_cohort(seed, state.round, num_clients, cohort_size)
        layout = deal(sizes[ids], execution.num_shards, execution.chunk)
        ids = np.where(layout >= 0, ids[layout], num_clients)
        stateful = bool(jax.tree.leaves(state.clients))
        states = gather(state.clients, ids) if stateful else state.clients
        key = jax.random.fold_in(jax.random.fold_in(root, 1), state.round)
        shared = (state.server, state.down_states, *counts(state), pool, key, np.int32(state.round))
        (server, down, sent, report), new = compiled_round(shared, make_cohort(ids, states))
        clients = scatter(state.clients, ids, new) if stateful else state.clients
        ledger = state.ledger.add(jax.device_get(sent))
        after = SimulationState(state.round + 1, server, down, clients, ledger)
        return after, round_metrics(after, jax.device_get(report))

    last_evaluated: list = [None, None]

    def evaluate(state: SimulationState, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        if last_evaluated[0] is not columns:
            last_evaluated[:] = columns, evaluation(model, columns, execution)
        return last_evaluated[1](algorithm.variables(state.server))

    def variables(state: SimulationState) -> Variables:
        return algorithm.variables(state.server)

    return Simulation(init, place, run_round, evaluate, variables, lambda: discover_from(*initial()[1:]))


def zero_counts(found: list[Discovery]) -> tuple[dict, dict]:
    """Zero counts of every channel and zeros for what is measured, in the structure that a round takes and returns."""
    measured = {name: ratio for d in found for name, ratio in d.measured.items()}
    return {d.channel: np.int32(0) for d in found}, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), measured)


def round_metrics(state: SimulationState, report: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """One round's line: means of the clients' `train_*` sums, cumulative bytes, what else algorithm and codecs tell.

    A `Ratio` becomes a number; one with nothing to divide by is left out.
    """
    examples = float(report.get("train_examples", 0)) or math.nan  # nobody trained: no mean, and not a loss of 0
    metrics: dict[str, Any] = {"round": state.round}
    for name, value in sorted(report.items()):
        if isinstance(value, Ratio):
            metrics |= {name: float(value.part) / float(value.whole)} if value.whole else {}
        elif name.startswith("train_") and name != "train_examples":
            metrics[name] = float(value) / examples
        elif name != "train_examples":
            metrics[name] = np.asarray(value).tolist()
    metrics["uplink_bytes"] = state.ledger.uplink_bytes
    metrics["downlink_bytes"] = state.ledger.downlink_bytes
    return metrics
