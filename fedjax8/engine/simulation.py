"""A federated run as functions of its state: `init`, `run_rounds`, `evaluate`.

Everything that decides a round is derived from (seed, round number), never carried in a generator: the cohort by
`participation`, every key by `fold_in`. So a state and its round number are all that a checkpoint needs, and the result
does not depend on devices, chunks, padding or the number of rounds per call, beyond the order of float32 summation.

    run_rounds
      plan (planning) and rows (feeding) of the next call, prefetched by a thread while the present one runs
      -> one dispatch of several rounds (call): Algorithm.round(link, state, cohort, key), round by round
      -> client states back into their store (states), bytes into the ledger, one line of metrics a round (lines)
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax8 import keys, trees
from fedjax8.data.batches import num_steps
from fedjax8.data.federated import FederatedData
from fedjax8.display import shows
from fedjax8.engine.arguments import check_beside, check_run, check_time
from fedjax8.engine.call import Begun, CallInputs, Carried, RoundOutcome, share_of
from fedjax8.engine.client_evaluation import Asked, ClientScores, FineTuning
from fedjax8.engine.facts import facts_of
from fedjax8.engine.feeding import Feed, Rows, feed
from fedjax8.engine.fit import fit_of
from fedjax8.engine.foretelling import Foretold
from fedjax8.engine.lengths import fitting_rounds, most_rounds
from fedjax8.engine.lines import call_lines
from fedjax8.engine.losses import client_losses
from fedjax8.engine.planning import Plan, Planner, planner, used
from fedjax8.engine.prefetch import Prefetch
from fedjax8.engine.programs import Programs
from fedjax8.engine.start import start_batch
from fedjax8.engine.state import SimulationState
from fedjax8.engine.states.client_states import client_states
from fedjax8.engine.tracing import Traced, trace_round
from fedjax8.exchange import versions
from fedjax8.exchange.clock import Timing
from fedjax8.exchange.discovery import Discovery
from fedjax8.exchange.ledger import Ledger
from fedjax8.exchange.link import DOWN, EDGE, PEER, UP
from fedjax8.executors import at_once
from fedjax8.executors.auto import auto
from fedjax8.given import checked
from fedjax8.hosts import hosts
from fedjax8.participation import Participants, Participation, Present, uniform
from fedjax8.systems import SystemModel
from fedjax8.systems.none import none as no_clock
from fedjax8.types import MODEL, Algorithm, BatchPlan, Codec, Executor, Model, PyTree, Variables, Way


@shows
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Simulation:
    """A federated run; made by `simulate`, which checks and documents the fields. Touches a device when it must."""

    algorithm: Algorithm
    data: FederatedData
    cohort_size: int
    uplink: Codec
    downlink: Codec
    seed: int
    executor: Executor
    rounds_per_call: int | None = None
    feed_mode: str = "auto"
    mixed_formats: bool = False
    beside: "Simulation | None" = None
    sample: Mapping[str, np.ndarray] | None = None
    participation: Participation = uniform()  # noqa: RUF009 (a constant)
    system: SystemModel = no_clock()  # noqa: RUF009 (a constant)

    _facts = facts_of  # as it is shown

    @property
    def model(self) -> Model:
        """The model that is trained."""
        return self.algorithm.local.model

    @property
    def plan(self) -> BatchPlan:
        """The clients' batch plan."""
        return self.algorithm.local.plan

    @property
    def num_clients(self) -> int:
        """Registered clients."""
        return self.data.num_clients

    @functools.cached_property
    def participants(self) -> Participants:
        """The selection of clients in its rounds."""
        steps = functools.partial(num_steps, self.plan)
        known = Foretold(self.system, self.seed, self.algorithm.steps or steps, functools.lru_cache(self.ways)).known()
        return Participants(self.participation, self.seed, self.cohort_size, self.data, steps, **known)

    @property
    def places(self) -> int:
        """Clients of a round on a device, at most."""
        return -(-self.participants.numbers.most_asked // self.executor.num_shards)

    @property
    def chunk(self) -> int:
        """Clients that a device works on at once."""
        return at_once(self.places, self.executor.chunk)

    def init(self, folder: Path | None = None) -> SimulationState:
        """The state before the first round. Client states too large for the device go to files in `folder`."""
        _, server, _ = self._initial
        store = client_states(self._first_client, self.num_clients, folder=folder)
        return self.place(SimulationState(0, server, self._codec_states(DOWN, EDGE), store, Ledger()))

    def place(self, state: SimulationState) -> SimulationState:
        """A state (one read from a checkpoint, as NumPy arrays) put where rounds expect it."""
        server, down = self.executor.place((state.server, state.down_states))
        return state._replace(server=server, down_states=down)

    def run_rounds(
        self, state: SimulationState, count: int, then: int = 0, donate: bool = False
    ) -> tuple[SimulationState, list[dict[str, Any]]]:
        """(next state, one dict of metrics a round): at least one round and at most `count`, in one dispatch.

        `then` is the `count` of the next call, which is prefetched meanwhile. With `donate` the given state's client
        states may be overwritten. Metrics: `round`, `train_loss`, cumulative bytes, `clients`, `padding`, ...
        """
        plan, carried, settings, share = self.begin(state, count)
        (carried, outcomes), new = self.programs.compiled((self.columns, carried, settings), share)
        if then:
            self.prefetch(plan.first + plan.rounds, then)
        return self.finish(state, plan, carried, outcomes, new, donate)

    def run_round(self, state: SimulationState) -> tuple[SimulationState, dict[str, Any]]:
        """One round: (next state, its metrics)."""
        state, lines = self.run_rounds(state, 1)
        return state, lines[0]

    def evaluate(self, state: SimulationState, columns: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metrics of the global model on columns `[N, ...]`; another mapping than the last is compiled again."""
        return self.programs.evaluated.evaluate(columns, self.variables(state))

    def evaluate_clients(
        self, state: SimulationState, ids: np.ndarray, held: FederatedData, fine_tune_steps: int = 0
    ) -> ClientScores:
        """Scores of clients' own models, each on its own held-out rows.

        `ids` `[n]` are different clients; `held` has the held-out rows of all, such as `data.held_out` gives; those
        without any are left out and counted. `fine_tune_steps` local steps on a client's training rows come before, at
        the last round's rate, and are forgotten after. UserError if no client of `ids` has held-out rows, or if the
        steps are not accounted for.
        """
        key, scale = jax.random.fold_in(self._root, 2), 1.0 if state.step_scale is None else state.step_scale
        how = self.cohort_size, lambda: self._own_feed, max(state.round - 1, 0), scale
        training = FineTuning(fine_tune_steps, key, *how)
        asked = Asked(state.server, self._initial[0], state.clients, ids, held, training)
        return self.programs.client_evaluation.scores(asked)

    def variables(self, state: SimulationState) -> Variables:
        """The global model, frozen parameters included. No state holds these: `init` of the model makes them from the
        seed, anew when a run is resumed."""
        frozen = self.algorithm.frozen(state.server, self._initial[0])
        return self.algorithm.variables(state.server)._replace(frozen=frozen)

    def discover(self) -> list[Discovery]:
        """Every kind of message of a round with its size, found by tracing the round, which is not run."""
        return self._traced.found

    def ways(self, steps: int) -> Sequence[Way]:
        """The ways of `Algorithm.ways`, for the most local steps of a client in a round."""
        return self.algorithm.ways([found.channel for found in self.discover()], steps, self.cohort_size)

    def begin(self, state: SimulationState, count: int) -> Begun:
        """The call of up to `count` rounds after `state`."""
        plan, rows = self._prefetched.take(state.round, count, self._present(state))
        own = list(self.executor.shards)
        clients = plan.table[own]
        states = jax.tree.map(
            lambda x: x.reshape(*clients.shape, *x.shape[1:]), state.clients.read(clients.reshape(-1))
        )
        first, rounds = np.int32(plan.first), np.int32(plan.rounds)
        scale = None if state.step_scale is None else np.float32(state.step_scale)
        settings = CallInputs(self._feed.order, self._root, first, rounds, self._initial[0], scale)
        carried = Carried(state.server, state.down_states)
        return Begun(plan, carried, settings, share_of(plan, own, rows, states, self.participants.loses))

    def finish(
        self,
        state: SimulationState,
        plan: Plan,
        carried: Carried,
        outcomes: RoundOutcome,
        new: PyTree,
        donate: bool = False,
    ) -> tuple[SimulationState, list[dict[str, Any]]]:
        """The result of `run_rounds` after its program; `state` is that before the call, `new` the clients' states."""
        everyone = used(plan.table, self.num_clients)
        new = self.executor.collect(jax.tree.map(lambda x: x[:, : everyone.shape[1]], new))
        new = jax.tree.map(lambda x: x.reshape(everyone.size, *x.shape[2:]), new)
        store = state.clients.write(everyone.reshape(-1), new, donate)
        lines, ledger = call_lines(self.algorithm, self.participants, plan, jax.device_get(outcomes), state.ledger)
        return SimulationState(plan.first + plan.rounds, *carried, store, ledger, state.step_scale), lines

    def prefetch(self, first: int, count: int) -> None:
        """Begins to prepare the call of `count` rounds from round `first` on, in a thread."""
        self._prefetched.start(first, count)

    @property
    def columns(self) -> PyTree:
        """Columns that a call gets: all rows, or none where they are streamed."""
        return self._feed.columns

    @functools.cached_property
    def programs(self) -> Programs:
        """The compiled programs."""
        if self.beside:
            return self.beside.programs
        return Programs(
            self.algorithm,
            self.uplink,
            self.downlink,
            self.executor,
            self.num_clients,
            self.data.columns,
            fit_of(self.model, self.data.columns),
            lambda: self._traced.outcome,
            self.cohort_size if self.participants.varies else None,
            self._timing,
        )

    @functools.cached_property
    def check_read(self) -> Callable[[Mapping[str, np.ndarray]], None] | None:
        """The check of rows as they are read from disk; rows in memory are checked when it is first asked for."""
        return self.programs.fit.on_entry(self.data.columns, "the clients' rows")

    @functools.cached_property
    def _timing(self) -> Timing | None:
        return Timing(self.system.server, functools.partial(num_steps, self.plan)) if self.system.timed else None

    @functools.cached_property
    def _root(self) -> jax.Array:
        return keys.random_key(self.seed)

    @functools.cached_property
    def _initial(self) -> tuple[PyTree, PyTree, PyTree]:
        """Frozen parameters, placed on the devices, and the states of server and client."""
        batch = start_batch(self.data, self.sample, private=bool(self.algorithm.privacy(1)))
        params, state, frozen = self.programs.init_model(jax.random.fold_in(self._root, 0), batch)
        placed = self.executor.place(hosts().spread(frozen)) if frozen else {}
        variables = Variables(params, state)
        return placed, self.algorithm.init(variables), self.algorithm.init_client(variables)

    @functools.cached_property
    def _traced(self) -> Traced:
        """A round, traced and not run."""
        frozen, server, client = self._initial
        return trace_round(
            self.algorithm,
            self.uplink,
            self.downlink,
            self.num_clients,
            columns=self.data.columns,
            server=server,
            client=client,
            frozen=frozen,
            mixed_formats=self.mixed_formats,
            timing=self._timing,
            moves=self.participation.remember is not None,
        )

    def _codec_states(self, *directions: str) -> dict[str, PyTree]:
        """State of each channel's codec before its first message."""
        states = {d.channel.name: d.first_state() for d in self._traced.found if d.channel.direction in directions}
        if DOWN in directions and self.participation.versions:
            sent = next(d.tree for d in self._traced.found if d.channel[:2] == (DOWN, MODEL))
            states |= {versions.RING: versions.empty(sent, self.participation.versions)}
        return states

    @functools.cached_property
    def _first_client(self) -> PyTree:
        """A client's state before its first round."""
        return {"algorithm": self._initial[2], "uplink": self._codec_states(UP, PEER)}

    @functools.cached_property
    def _remembers(self) -> bool:
        """Whether clients have a state."""
        return bool(jax.tree.leaves(self._first_client))

    @functools.cached_property
    def _fitting_rounds(self) -> int:
        return fitting_rounds(trees.num_bytes(self._first_client) * self.places, self.participation.reads_state)

    @functools.cached_property
    def _most_rounds(self) -> int:
        bounded = self._remembers or self.participation.reads_state
        return most_rounds(self.rounds_per_call, self._fitting_rounds, bounded)

    @functools.cached_property
    def _feed(self) -> Feed:
        """The feed of rows to the devices."""
        return self._new_feed(self._most_rounds)

    @functools.cached_property
    def _own_feed(self) -> Feed:
        """The feed of an evaluation, whose buffers are not those of rounds."""
        return self._feed if self._feed.columns else self._new_feed(1)

    def _new_feed(self, most_rounds: int) -> Feed:
        usual = self.participants.usual_rows() // self.executor.num_shards
        placed = lambda: self.programs.placed
        mode = "resident" if self.algorithm.pooled else self.feed_mode
        return feed(self.data, self.executor, placed, mode, usual, most_rounds, self.check_read)

    @functools.cached_property
    def _planner(self) -> Planner:
        return planner(
            participants=self.participants,
            batches=self.plan,
            num_shards=self.executor.num_shards,
            chunk=self.executor.chunk,
            most_rounds=self._most_rounds,
            stay=self._fitting_rounds if self._remembers else 0,
            most_rows=self._feed.most_rows,
            speeds=functools.partial(self.system.speeds, self.seed) if self.system.speeds else None,
        )

    def _prepare(self, first: int, count: int, present: Present | None = None) -> tuple[Plan, Rows]:
        plan = self._planner(first, count, present)
        return plan, self._feed.prepare(plan)

    @functools.cached_property
    def _prefetched(self) -> Prefetch:
        return Prefetch(self._prepare, ahead=not self.participation.reads_state)

    def _present(self, state: SimulationState) -> Present:
        """What draws read of the state: the loss of the present model on the rows of clients, and their own memory."""
        how = self._feed, self.executor, self.participants
        of = lambda ids: client_losses(ids, self.programs.losses, *how, self.variables(state))
        return Present(of, state.ledger.memory, state.ledger.seconds or 0.0)


@checked
def simulate(
    algorithm: Algorithm,
    data: FederatedData,
    *,
    cohort_size: int,
    uplink: Codec,
    downlink: Codec,
    seed: int = 0,
    executor: Executor | None = None,
    rounds_per_call: int | None = None,
    feed_mode: str = "auto",
    mixed_formats: bool = False,
    beside: Simulation | None = None,
    sample: Mapping[str, np.ndarray] | None = None,
    participation: Participation | None = None,
    system: SystemModel | None = None,
) -> Simulation:
    """A federated run of `algorithm` on `data`.

    Model and batch plan are those of the `local_training` that the algorithm was built over.

    Args:
      algorithm: defines a round, and has the model that is trained.
      data: columns and the owner of each row.
      cohort_size: clients a round.
      uplink, downlink: codecs of the messages that clients send, and receive.
      seed: of initialization, cohorts and all training randomness.
      executor: maps clients over devices; default `executors.auto`.
      rounds_per_call: most rounds of one dispatch; default as many as are useful and fit. Changes no result.
      feed_mode: `resident`, `streamed` or `auto`, see `feeding.feed`.
      mixed_formats: allows adapter, codecs and refinement several 8-bit formats, which `init` refuses otherwise.
      beside: a simulation in which only the seed and the owners of rows differ; its programs and rows are shared.
      sample: columns `[n, ...]` that the model is initialized on, and its input clips calibrated. By default some of
        the training rows; where the algorithm states an epsilon, which does not cover that, rows that are drawn.
      participation: the selection of clients; default `participation.uniform()`.
      system: how fast devices and links are; default `systems.none()`, without a clock.

    Raises:
      UserError: an argument of another type; a cohort larger than the number of clients; a participation that cannot
        draw it, or that the algorithm does not admit; clients without any data; rows that do not fit the model (see
        `fit`): labels beyond its outputs, tokens beyond its vocabulary, NaN, raw integers that it would multiply; or
        `beside` has other rows.
    """
    check_run(algorithm, data, seed, rounds_per_call, feed_mode)
    executor = auto() if executor is None else executor
    how = (seed, executor, rounds_per_call, feed_mode, mixed_formats, beside, sample, participation or uniform())
    made = Simulation(algorithm, data, cohort_size, uplink, downlink, *how, system or no_clock())
    check_time(made.algorithm, made.system, made.participation)
    if beside:
        check_beside(made, beside)
    made.participants.check(algorithm, beside.participants if beside else None)
    _ = made.check_read
    return made
