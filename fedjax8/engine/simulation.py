"""A federated run as functions of its state: `init`, `run_rounds`, `evaluate`.

Everything that decides a round is derived from (seed, round number), never carried in a generator: the cohort by
`sample_cohort`, every key by `fold_in`. So a state and its round number are all that a checkpoint needs, and the
result does not depend on devices, chunks, padding or the number of rounds per call, beyond the order of float32
summation.

    plan (planning) and rows (feeding) of the next call, made by a thread while the present one runs
    -> one dispatch of several rounds (call)
    -> states of the clients back into their store (client_states), bytes into the ledger
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import keys, trees
from fedjax8.data.federated import FederatedData, sample_cohort
from fedjax8.engine.call import Carried, Outcome, Settings, Share, call_program
from fedjax8.engine.evaluation import Evaluated
from fedjax8.engine.feeding import Feed, Rows, feed
from fedjax8.engine.fit import Fit, fit_of
from fedjax8.engine.planning import Plan, planner, used
from fedjax8.engine.start import start_batch
from fedjax8.engine.states.client_states import ClientStates, client_states
from fedjax8.errors import UserError
from fedjax8.exchange.ledger import Ledger
from fedjax8.exchange.left_out import named, no_cells
from fedjax8.exchange.link import DOWN, UP, Discovery, Link, Recorder
from fedjax8.executors import at_once
from fedjax8.executors.auto import auto
from fedjax8.executors.loop import loop
from fedjax8.given import checked
from fedjax8.hosts import hosts
from fedjax8.numerics import formats
from fedjax8.types import Algorithm, BatchPlan, Codec, Cohort, Executor, Model, Pool, PyTree, Ratio, Variables, Way

ROUNDS_PER_CALL = 64
"""Enough for the host's part of a call to vanish, few enough for plans and logs of a call to be small."""
CALL_STATE_BYTES = 1 << 27
"""Client states that a call of several rounds may hold on one device."""


class SimulationState(NamedTuple):
    """All that a run carries from round to round."""

    round: int
    """Rounds done."""
    server: PyTree
    """The algorithm's server state."""
    down_states: dict[str, PyTree]
    """State of the downlink codec by channel."""
    clients: ClientStates
    """Persistent states of all registered clients. Where they lie on disk rounds change them in place: go on from the
    state that a round returned, and not from one before it."""
    ledger: Ledger


class Simulation(NamedTuple):
    """A run; see `simulate`."""

    init: Callable[..., SimulationState]
    """`init(folder=None)`; client states too large for the device go to files in `folder`."""
    place: Callable[[SimulationState], SimulationState]
    """Puts a state (one read from a checkpoint, as NumPy arrays) where rounds expect it."""
    run_rounds: Callable[..., tuple[SimulationState, list[dict[str, Any]]]]
    """`(state, count, then=0, donate=False) -> (next state, one dict of metrics per round)`: at least one round and at
    most `count`, in one dispatch. `then` is the `count` of the next call, which is prepared meanwhile. With `donate`
    the given state's client states may be overwritten. Metrics: `round`, `train_loss`, cumulative bytes, `clients`,
    `padding`, ..."""
    run_round: Callable[[SimulationState], tuple[SimulationState, dict[str, Any]]]
    """One round: (next state, its metrics)."""
    evaluate: Callable[[SimulationState, Mapping[str, np.ndarray]], dict[str, float]]
    """Metrics of the global model on columns `[N, ...]`; compiled again when another mapping than the last is given."""
    variables: Callable[[SimulationState], Variables]
    """The global model, with what of it is frozen. No state holds that: it is what `init` of the model gives for the
    seed, made anew when a run is resumed."""
    discover: Callable[[], list[Discovery]]
    """Every kind of message of a round with its size, found by tracing the round, which is not run."""
    parts: "Parts"
    """What `side_by_side` runs several simulations by."""


class Traced(NamedTuple):
    """What tracing one round tells."""

    found: list[Discovery]
    outcome: Outcome
    """Shapes of what a round leaves."""


class Common(NamedTuple):
    """What no seed changes: compiled once for all simulations `beside` each other."""

    rows: Mapping[str, np.ndarray]
    init_model: Callable
    program: Callable[[], Callable]
    """The program of a call, not compiled."""
    compiled: Callable[[], Callable]
    columns: Callable[[], PyTree]
    """All rows, placed on the devices."""
    evaluate: Callable[[Mapping[str, np.ndarray], Variables], dict[str, float]]
    fit: Fit


class Begun(NamedTuple):
    """A call, ready to be dispatched."""

    plan: Plan
    carried: Carried
    settings: Settings
    share: Share


class Parts(NamedTuple):
    """A call in two halves, between which its program runs."""

    common: Common
    begin: Callable[[SimulationState, int], Begun]
    finish: Callable[..., tuple[SimulationState, list[dict[str, Any]]]]
    """`(state before, plan, carried, outcomes, client states, donate=False) -> (state, metrics)`."""
    prepare: Callable[[int, int], None]
    """Begins to prepare the call of some rounds from one on."""
    columns: Callable[[], PyTree]
    """Columns that a call is given: all rows, or none where they are streamed."""
    chunk: int
    """Clients at once on a device."""
    ways: Callable[[int], Sequence[Way]]
    """Most local steps of a client in a round to the ways of `Algorithm.ways`."""


class Prepared(NamedTuple):
    """A call, ready to be dispatched but for the states."""

    plan: Plan
    rows: Rows


@checked
def simulate(
    model: Model,
    algorithm: Algorithm,
    data: FederatedData,
    *,
    cohort_size: int,
    uplink: Codec,
    downlink: Codec,
    seed: int = 0,
    executor: Executor | None = None,
    batches: BatchPlan | None = None,
    rounds_per_call: int | None = None,
    feed_mode: str = "auto",
    mixed_formats: bool = False,
    beside: Simulation | None = None,
    sample: Mapping[str, np.ndarray] | None = None,
) -> Simulation:
    """A federated run of `algorithm` on `data`.

    Args:
      model: what is trained; gives initial variables and evaluation.
      algorithm: built over a `local_training` of the same model.
      data: columns and who owns which row.
      cohort_size: clients a round, drawn without replacement.
      uplink, downlink: codecs of what clients send and what they receive.
      seed: of initialization, cohorts and all training randomness.
      executor: how clients are mapped over devices; default `executors.auto`.
      batches: the plan that clients cut their rows by, to share out work and measure padding; else rows are counted.
      rounds_per_call: most rounds of one dispatch; default as many as are useful and fit. Changes no result.
      feed_mode: how rows reach the device, see `feeding.feed`.
      mixed_formats: allows adapter, codecs and refinement several 8-bit formats, which `init` refuses otherwise.
      beside: a simulation in which only the seed and who owns which row differ; what it compiled and placed is shared.
      sample: columns `[n, ...]` that the model is initialized on, and its input clips calibrated. By default some of
        the training rows; where the algorithm states an epsilon, which does not cover that, rows that are drawn.

    Raises:
      UserError: an argument of another type; a cohort larger than the number of clients; clients without any data;
        rows that do not fit the model (see `fit`): labels beyond its outputs, tokens beyond its vocabulary, NaN, raw
        integers that it would multiply; or `beside` has other rows.
    """
    num_clients = data.num_clients
    if seed < 0 or (rounds_per_call is not None and rounds_per_call < 1):
        raise UserError(
            f"seed is {seed} and rounds_per_call {rounds_per_call}; a seed must be at least 0, and rounds_per_call at "
            "least 1 or None"
        )
    if not 1 <= cohort_size <= num_clients:
        raise UserError(f"cohort_size is {cohort_size}, but must be between 1 and the number of clients, {num_clients}")
    if algorithm.everyone and cohort_size < num_clients:
        raise UserError(
            f"this algorithm needs every client in every round: set cohort_size to {num_clients}; it is {cohort_size}"
        )
    if not data.num_positions or not np.any(data.sizes):
        raise UserError(f"none of the {num_clients} clients has any data")
    if beside and any(beside.parts.common.rows.get(name) is not column for name, column in data.columns.items()):
        raise UserError("simulations beside each other must have the same columns, not copies of them")
    fit = beside.parts.common.fit if beside else fit_of(model, data.columns)
    check_read = fit.on_entry(data.columns, "the clients' rows")
    executor = auto() if executor is None else executor
    root = keys.random_key(seed)

    @functools.cache
    def initial() -> tuple[PyTree, PyTree, PyTree]:
        """Frozen parameters, placed on the devices, and the states of server and client."""
        batch = start_batch(data, sample, private=bool(algorithm.privacy(1)))
        params, state, frozen = common.init_model(jax.random.fold_in(root, 0), batch)
        placed = executor.place(hosts().spread(frozen)) if frozen else {}
        variables = Variables(params, state)
        return placed, algorithm.init(variables), algorithm.init_client(variables)

    @functools.cache
    def traced() -> Traced:
        """A round, traced and not run."""
        recorder, (frozen, server, client) = Recorder(), initial()
        one: Any = {name: np.zeros((1, *c.shape[1:]), c.dtype) for name, c in data.columns.items()}
        states = jax.tree.map(lambda x: jnp.asarray(x)[None], {"algorithm": client, "uplink": {}})
        numbers: Any = np.zeros(1, np.int32)
        cohort = Cohort(numbers, numbers, numbers, numbers == 0, states)

        def one_round(server, cohort, pool, key):
            settings: Any = {"uplink": uplink, "downlink": downlink, "executor": loop(), "num_clients": num_clients}
            link = Link(pool, {}, {}, {}, no_cells(), jnp.int32(0), recorder=recorder, **settings)
            return algorithm.round(link, server, cohort, key).report

        with formats.one_format(mixed_formats):
            report = jax.eval_shape(one_round, server, cohort, Pool(one, None, frozen), root)
        counts: Any = {d.channel: jax.ShapeDtypeStruct((), jnp.int32) for d in recorder.found}
        measured = {name: ratio for d in recorder.found for name, ratio in d.measured.items()}
        rejected: Any = jax.ShapeDtypeStruct((), bool)
        return Traced(recorder.found, Outcome(report, measured, counts, jax.eval_shape(no_cells), rejected))

    def codec_states(direction: str) -> dict[str, PyTree]:
        return {d.channel.name: d.codec.init(d.tree) for d in traced().found if d.channel.direction == direction}

    @functools.cache
    def first_client() -> PyTree:
        return {"algorithm": initial()[2], "uplink": codec_states(UP)}

    @functools.cache
    def fitting_rounds() -> int:
        """Rounds whose clients' states fit in a call; 0 where clients remember nothing."""
        of_round = trees.num_bytes(first_client()) * -(-cohort_size // executor.num_shards)
        return max(1, min(ROUNDS_PER_CALL, CALL_STATE_BYTES // of_round)) if of_round else 0

    @functools.cache
    def most_rounds() -> int:
        wanted = rounds_per_call or ROUNDS_PER_CALL
        return min(wanted, fitting_rounds() or wanted)

    @functools.cache
    def rows_feed() -> Feed:
        usual = data.windows(sample_cohort(seed, 0, num_clients, cohort_size))[1].sum() // executor.num_shards
        return feed(data, executor, common.columns, feed_mode, int(usual), most_rounds(), check_read)

    @functools.cache
    def plan_of() -> Callable[[int, int], Plan]:
        return planner(
            seed=seed,
            num_clients=num_clients,
            cohort_size=cohort_size,
            windows=data.windows,
            batches=batches,
            num_shards=executor.num_shards,
            chunk=executor.chunk,
            most_rounds=most_rounds(),
            stay=fitting_rounds(),
            most_rows=rows_feed().most_rows,
        )

    program = lambda: call_program(algorithm, uplink, downlink, executor, num_clients, traced().outcome)
    common = (
        beside.parts.common
        if beside
        else Common(
            data.columns,
            jax.jit(model.init),
            program,
            functools.cache(lambda: executor.compile(program())),
            functools.cache(lambda: executor.place({n: np.asarray(column) for n, column in data.columns.items()})),
            Evaluated(model, executor, fit).evaluate,
            fit,
        )
    )

    def init(folder: Path | None = None) -> SimulationState:
        server, down = initial()[1], codec_states(DOWN)
        store = client_states(first_client(), num_clients, folder=folder)
        return place(SimulationState(0, server, down, store, Ledger()))

    def place(state: SimulationState) -> SimulationState:
        server, down = executor.place((state.server, state.down_states))
        return state._replace(server=server, down_states=down)

    def prepare(first: int, count: int) -> Prepared:
        plan = plan_of()(first, count)
        return Prepared(plan, rows_feed().prepare(plan))

    ahead = Ahead(prepare)

    def begin(state: SimulationState, count: int) -> Begun:
        plan, rows = ahead.take(state.round, count)
        own = list(executor.shards)
        clients = plan.table[own]
        states = jax.tree.map(
            lambda x: x.reshape(*clients.shape, *x.shape[1:]), state.clients.read(clients.reshape(-1))
        )
        settings = Settings(rows_feed().order, root, np.int32(plan.first), np.int32(plan.rounds), initial()[0])
        carried = Carried(state.server, state.down_states)
        return Begun(plan, carried, settings, Share(plan.ids[own], plan.slots[own], rows, states))

    def finish(
        state: SimulationState, plan: Plan, carried: Carried, outcomes: Outcome, new: PyTree, donate: bool = False
    ) -> tuple[SimulationState, list[dict[str, Any]]]:
        everyone = used(plan.table, num_clients)
        new = executor.collect(jax.tree.map(lambda x: x[:, : everyone.shape[1]], new))
        new = jax.tree.map(lambda x: x.reshape(everyone.size, *x.shape[2:]), new)
        store = state.clients.write(everyone.reshape(-1), new, donate)
        outcomes, lines, ledger = jax.device_get(outcomes), [], state.ledger
        for i in range(plan.rounds):
            report, measured, sent, left_out, rejected = jax.tree.map(lambda x, i=i: x[i], outcomes)
            ledger = ledger.add(sent)
            number = plan.first + i + 1
            others: dict[str, Any] = (
                {"padding": plan.padding[i]} | algorithm.account(ledger.sent) | algorithm.privacy(number)
            )
            who = named(left_out, num_clients)
            others |= ({"excluded_clients": who} if who else {}) | ({"rejected": 1} if rejected else {})
            lines.append(round_metrics(number, ledger, report | measured | others))
        return SimulationState(plan.first + plan.rounds, *carried, store, ledger), lines

    def run_rounds(
        state: SimulationState, count: int, then: int = 0, donate: bool = False
    ) -> tuple[SimulationState, list[dict[str, Any]]]:
        plan, carried, settings, share = begin(state, count)
        (carried, outcomes), new = common.compiled()((rows_feed().columns, carried, settings), share)
        if then:
            ahead.start(plan.first + plan.rounds, then)
        return finish(state, plan, carried, outcomes, new, donate)

    def run_round(state: SimulationState) -> tuple[SimulationState, dict[str, Any]]:
        state, lines = run_rounds(state, 1)
        return state, lines[0]

    def evaluate(state: SimulationState, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        return common.evaluate(columns, variables(state))

    def variables(state: SimulationState) -> Variables:
        return algorithm.variables(state.server)._replace(frozen=algorithm.frozen(state.server, initial()[0]))

    together = at_once(-(-cohort_size // executor.num_shards), executor.chunk)
    ways = lambda steps: algorithm.ways([d.channel for d in traced().found], steps, cohort_size)
    parts = Parts(common, begin, finish, ahead.start, lambda: rows_feed().columns, together, ways)
    return Simulation(init, place, run_rounds, run_round, evaluate, variables, lambda: traced().found, parts)


class Ahead:
    """Prepares the next call in a thread. What was prepared for another call than the one that comes is dropped."""

    def __init__(self, prepare: Callable[[int, int], Prepared]):
        self._prepare = prepare
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="fedjax8-ahead")
        self._next: tuple[tuple[int, int], Future] | None = None

    def start(self, first: int, count: int) -> None:
        """Begins to prepare `count` rounds from round `first` on."""
        self._next = (first, count), self._threads.submit(self._prepare, first, count)

    def take(self, first: int, count: int) -> Prepared:
        """What was begun for these rounds, or made now."""
        (wanted, made), self._next = self._next or (None, None), None
        if made and wanted == (first, count):
            return made.result()
        if made:
            made.cancel()
        return self._prepare(first, count)


def round_metrics(number: int, ledger: Ledger, report: Mapping[str, Any]) -> dict[str, Any]:
    """One round's line: means of the clients' `train_*` sums, cumulative bytes, what else algorithm and codecs tell.

    A `Ratio` becomes a number; one with nothing to divide by is left out.
    """
    examples = float(report.get("train_examples", 0)) or math.nan  # nobody trained: no mean, and not a loss of 0
    metrics: dict[str, Any] = {"round": number}
    for name, value in sorted(report.items()):
        if isinstance(value, Ratio):
            metrics |= {name: float(value.part) / float(value.whole)} if value.whole else {}
        elif name.startswith("train_") and name != "train_examples":
            metrics[name] = float(value) / examples
        elif name != "train_examples":
            metrics[name] = np.asarray(value).tolist()
    metrics["uplink_bytes"] = ledger.uplink_bytes
    metrics["downlink_bytes"] = ledger.downlink_bytes
    metrics |= ledger.by_name()
    return metrics
