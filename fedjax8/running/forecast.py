"""Forecast of a run before it is run: parameters, bytes, local steps, memory, time.

    bytes    encoded size of each kind of message x how often a client sends it in a round: the least and the most that
             it may be, since kinds may be alternatives (FedCode, HetLoRA) or go several times (FDA), and clients drop
             out
    steps    of the clients that will take part, since cohorts follow from (seed, round)
    memory   of one device: the arguments of its program, and the program's own by XLA's count
    time     of a call of rounds and of an evaluation, measured; or multiply-adds over the rate of large products
    clock    simulated seconds of a round, where there is a system model (`timeline`)

Nothing is written. A measured forecast compiles the run and runs a few rounds of it. A quick one does neither: its time
is that of the models' products alone.
"""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax8 import trees
from fedjax8.data.batches import num_steps
from fedjax8.engine.simulation import Simulation
from fedjax8.engine.start import sample_batch
from fedjax8.engine.state import SimulationState
from fedjax8.exchange.ledger import Ledger
from fedjax8.operations import loss_gradient, multiply_adds
from fedjax8.running.schedule import CALL_SECONDS, Schedule
from fedjax8.running.timeline import LOOKED_AT, Simulated, foreseen
from fedjax8.types import MODEL, Channel, Executor, Partial, PyTree, Variables, Way

COHORTS_LOOKED_AT = 1 << 20
"""Clients, over all cohorts, whose steps are added up; a longer run is extrapolated."""
PRODUCT = 512
"""Rows and columns of the products that the rate of multiplication is measured by."""


class Leaf(NamedTuple):
    """One array of the model."""

    name: str
    shape: tuple[int, ...]
    size: int
    kind: str
    """`trained`, `clip` (trained, but of the encoding: no float32 run has it), `frozen`, or `state` (statistics)."""


class StepForecast(NamedTuple):
    """Local steps."""

    least: int
    median: float
    most: int
    """Steps of one client in one round, over all clients."""
    run: int
    """All steps of the run."""
    exact: bool
    """Whether all cohorts were looked at, as they will be drawn."""


class Memory(NamedTuple):
    """Bytes on one device."""

    model: int
    """State of server and downlink codec."""
    frozen: int
    rows: int
    """Training rows, all or those of a call, with the clients' places in them, and test rows."""
    client_states: int
    """Of all clients, where they are held on a device (the first one), and of those of a call."""
    working: int | None
    """Working set of the compiled round, its results included: gradients, activations, optimizer states, messages
    of the clients that the device works on at once. None where it was not compiled."""

    @property
    def total(self) -> int:
        """Sum of all of them."""
        return sum(part or 0 for part in self)


class Seconds(NamedTuple):
    """Seconds of a run and its parts."""

    round: float
    evaluation: float | None
    """None where nothing was measured."""
    start: float | None
    """To initialize and compile; None likewise."""
    run: float
    """All rounds and evaluations, and the start."""


class Range(NamedTuple):
    """Least and most of a number."""

    least: int
    most: int


class Traffic(NamedTuple):
    """Messages and bytes of one client in one round."""

    times: Mapping[Channel, Range]
    """Messages of each kind."""
    up: Range
    """Bytes."""
    down: Range
    others: Mapping[str, Range] = {}
    """Bytes that a client sends in other directions."""

    def of(self, direction: str) -> Range:
        """Bytes of a direction."""
        return {"up": self.up, "down": self.down, **self.others}[direction]

    @property
    def fixed(self) -> bool:
        """Whether every client and round has the same."""
        return all(times.least == times.most for times in self.times.values())


def clients_of(channel: Channel, asked: Range, used: Range) -> Range:
    """How many clients of a round send or receive a kind of message. All that are asked receive the model; what comes
    later in a round may be sent to those alone who are waited for, which the algorithm decides."""
    if channel.direction == "edge":
        return Range(1, 1)  # of edge servers, whose messages of a round are counted together
    if channel.direction != "down":
        return used
    return asked if channel.name == MODEL else Range(used.least, asked.most)


class Forecast(NamedTuple):
    """Forecast of a run."""

    leaves: tuple[Leaf, ...]
    rounds: int
    asked: Range
    """Clients of a round that receive the model."""
    used: Range
    """Those that are waited for."""
    reports: Mapping[Channel, Range]
    """Messages of a round beside those of the algorithm: the candidates' reports."""
    traffic: Traffic
    round_messages: Ledger | None
    """Ledger of the first round. None where nothing was run and rounds may differ."""
    run_messages: Ledger | None
    """Ledger of the run. None where rounds may differ."""
    steps: StepForecast
    memory: Memory
    seconds: Seconds
    measured: bool
    chunk: int
    """Clients that a device works on at once."""
    simulated: Simulated | None = None
    """Simulated time; None for a run without a clock."""


def forecast(
    simulation: Simulation,
    schedule: Schedule,
    test: Mapping[str, np.ndarray],
    *,
    measured: bool = True,
) -> Forecast:
    """The forecast of a run of `simulation` from its beginning.

    With `measured` false nothing is compiled but the model's initialization.
    """
    begun = time.perf_counter()
    participants = simulation.participants
    state = simulation.init()
    variables = simulation.variables(state)
    steps = steps_of(simulation, schedule.rounds)
    traffic = traffic_of(simulation.ways(steps.most))
    asked, used = asked_of(simulation, schedule.rounds), Range(*participants.numbers[2:])
    reports = dict.fromkeys(participants.reports(1), asked)
    clients = {channel: clients_of(channel, asked, used) for channel in traffic.times}
    fixed = traffic.fixed and all(x.least == x.most for x in (asked, used, *clients.values()))
    sent: Mapping[Channel, int] = {c: clients[c].most * n.most for c, n in traffic.times.items()}
    sent = {**sent, **{channel: n.most for channel, n in reports.items()}}
    working = None
    if measured:
        working, sent, seconds = _measure(simulation, schedule, test, state, begun)
    else:
        rows = sample_batch(simulation.data, simulation.plan.batch_size)
        per_step = multiply_adds(loss_gradient(simulation.model), variables, rows)
        of_round = steps.run / schedule.rounds * per_step / products_per_second(simulation.executor)
        seconds = Seconds(of_round, None, None, of_round * schedule.rounds)
    return Forecast(
        leaves=tuple(leaves_of(variables)),
        rounds=schedule.rounds,
        asked=asked,
        used=used,
        reports=reports,
        traffic=traffic,
        round_messages=Ledger(sent) if measured or fixed else None,
        run_messages=Ledger({c: n * schedule.rounds for c, n in sent.items()}) if fixed else None,
        steps=steps,
        memory=_memory(simulation, test, state, working),
        seconds=seconds,
        measured=measured,
        chunk=simulation.chunk,
        simulated=foreseen(simulation, schedule.rounds),
    )


def asked_of(simulation: Simulation, rounds: int) -> Range:
    """Fewest and most clients of a round that receive the model: where rounds do not wait, those who start in each of
    the rounds looked at, of which the first starts all that are on their way at once."""
    participants = simulation.participants
    if not simulation.participation.versions:
        return Range(*participants.numbers[:2])
    started = [participants.drawn(number).started or 0 for number in range(min(rounds, LOOKED_AT))]
    return Range(min(started), max(started))


def traffic_of(ways: Sequence[Way]) -> Traffic:
    """The least and the most over all ways."""
    over = lambda values: Range(min(values), max(values))
    of_way = lambda way, direction: sum(c.message_bytes * n for c, n in way.items() if c.direction == direction)
    channels = dict.fromkeys(channel for way in ways for channel in way)
    times = {channel: over([way.get(channel, 0) for way in ways]) for channel in channels}
    of = {d: over([of_way(way, d) for way in ways]) for d in ("up", "down", *(c.direction for c in channels))}
    return Traffic(times, of.pop("up"), of.pop("down"), of)


def leaves_of(variables: Variables) -> list[Leaf]:
    """The arrays of a model, in the order of their names within each of `params`, `frozen` and `state`."""
    kinds = {"trained": variables.params, "frozen": variables.frozen, "state": variables.state}
    return [
        Leaf(name, tuple(x.shape), math.prod(x.shape), "clip" if kind == "trained" and trees.is_clip(name) else kind)
        for kind, tree in kinds.items()
        for name, x in trees.named_leaves(tree).items()
    ]


def steps_of(simulation: Simulation, rounds: int) -> StepForecast:
    """Local steps of the clients that will be drawn."""
    participants = simulation.participants
    of_sizes = simulation.algorithm.steps or functools.partial(num_steps, simulation.plan)
    sizes: Any = simulation.data.sizes
    of_client = np.asarray(of_sizes(sizes))
    looked_at = min(rounds, max(1, COHORTS_LOOKED_AT // simulation.cohort_size))
    cohorts = (participants.drawn(number) for number in range(looked_at))
    found = sum(int(of_client[cohort.ids[~cohort.lost]].sum()) for cohort in cohorts)
    exact = looked_at == rounds and not simulation.participation.reads_state
    least, most = int(of_client.min()), int(of_client.max())
    return StepForecast(least, float(np.median(of_client)), most, round(found / looked_at * rounds), exact)


def _measure(
    simulation: Simulation,
    schedule: Schedule,
    test: Mapping[str, np.ndarray],
    state: SimulationState,
    begun: float,
) -> tuple[int | None, Mapping[Channel, int], Seconds]:
    """(bytes of the working set, messages of the first round, seconds)."""
    call = simulation.begin(state, 1)
    program = simulation.programs.compiled
    working = None
    if hasattr(program, "lower"):
        given = (simulation.columns, call.carried, call.settings), call.share
        needs = program.lower(*given).compile().memory_analysis()
        if needs is not None:
            working = needs.temp_size_in_bytes + needs.output_size_in_bytes - needs.alias_size_in_bytes
    state, _ = simulation.run_rounds(state, 1)
    sent = state.ledger.sent
    simulation.evaluate(state, test)
    start = time.perf_counter() - begun

    evaluation, _ = _timed(simulation.evaluate, state, test)
    of_round, count = math.inf, 1
    for _ in range(2):  # one round, then as many as a call of the run would have
        seconds, (state, lines) = _timed(simulation.run_rounds, state, count)
        of_round = min(of_round, seconds / len(lines))
        count = max(1, int(CALL_SECONDS / of_round))
    rounds, every = schedule.rounds, schedule.eval_every
    evaluations = rounds // every + (rounds % every > 0)
    whole = start + rounds * of_round + evaluations * evaluation
    return working, sent, Seconds(of_round, evaluation, start, whole)


def _timed(f: Callable, *arguments: Any) -> tuple[float, Any]:
    begun = time.perf_counter()
    made = f(*arguments)
    jax.block_until_ready([x for x in jax.tree.leaves(made) if isinstance(x, jax.Array)])
    return time.perf_counter() - begun, made


def _memory(
    simulation: Simulation,
    test: Mapping[str, np.ndarray],
    state: SimulationState,
    working: int | None,
) -> Memory:
    call = simulation.begin(state, 1)
    own = len(simulation.executor.shards)
    rows = trees.num_bytes((simulation.columns, call.settings.order)) + trees.num_bytes(call.share.rows) // own
    held = [x for x in jax.tree.leaves(state.clients.arrays()) if isinstance(x, jax.Array)]
    return Memory(
        model=trees.num_bytes(call.carried),
        frozen=trees.num_bytes(call.settings.frozen),
        rows=rows + trees.num_bytes(dict(test)),
        client_states=trees.num_bytes(held) + trees.num_bytes(call.share.states) // own,
        working=working,
    )


def products_per_second(executor: Executor) -> float:
    """Multiply-adds per second of float32 products, on all devices of this process at once."""
    own = len(executor.shards)
    per_client = jnp.zeros((own, PRODUCT, PRODUCT))

    def chain(times: jax.Array, a: jax.Array) -> tuple[Partial, PyTree]:
        return Partial(jax.lax.fori_loop(0, times, lambda _, x: jnp.dot(x, a), a)), ()

    run = executor.compile(lambda times, parts: executor.map_reduce(chain, times, parts))
    times, seconds = 1, 0.0
    _timed(run, np.int32(1), per_client)
    while seconds < CALL_SECONDS / 8:
        times *= 4
        seconds, _ = _timed(run, np.int32(times), per_client)
    return own * times * PRODUCT**3 / seconds
