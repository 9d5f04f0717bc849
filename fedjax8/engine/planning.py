"""Plans of the next rounds, made on the host ahead of time: their clients, on which device, in which order.

A *call* is some rounds that run as one dispatch. Its plan is a function of (seed, round) and the clients' sizes alone,
so that plans can be made ahead of time, by any process, and a resumed run makes the same ones. Where a participation
reads the state, its plan is one of that too, and of one round.

    draw      the cohort of each round, from (seed, round)
    group     clients of like work, `chunk` at a time, the longest first
    assign    the next longest group to the device with the least work that has room

The last rule is the longest-processing-time rule (Graham 1969), with one difference: every device has the same number
of places, so that all rounds have one shape. A client that remembers something stays on one device for a whole call.
Where that cannot be, or its rows would not fit, the call ends before the round and the next call begins there. Where
such a client stays is decided for `stay` rounds at a time, from a multiple of that on, whatever calls run these
rounds: the length of a call depends on the clock and on a setting, and the order of sums must not.
"""

import functools
import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fedjax8.data.batches import num_steps, steps_per_epoch
from fedjax8.errors import UserError
from fedjax8.executors import groups, padded
from fedjax8.participation import Drawn, Participants, Participation, Present
from fedjax8.participation.base import StepTime
from fedjax8.systems import Speeds
from fedjax8.types import BatchPlan, PyTree


class Deal(NamedTuple):
    """The clients of one round, laid out over `S` shards with `c` places each."""

    positions: np.ndarray
    """int `[S, c]`: positions in the cohort, -1 for padding."""
    padding: float
    """Share of the round's work that is padding: masked rows, clients waiting for their group, empty places."""


class Plan(NamedTuple):
    """The clients of `rounds` rounds from `first` on. `K` stands for padding."""

    first: int
    rounds: int
    ids: np.ndarray
    """int32 `[S, R, c]`, R the most rounds that a call can have; rounds beyond `rounds` are padding."""
    slots: np.ndarray
    """int32 `[S, R, c]`: the client's place in `table`."""
    table: np.ndarray
    """int32 `[S, T]`: clients of each shard, each once. T is `R * c`, or the number of clients if that is less."""
    padding: tuple[float, ...]
    """Of each round."""
    training: np.ndarray
    """int32 `[S, R, c]`: `ids` with padding in place of clients that are not waited for."""
    asked: tuple[int, ...]
    """Number of clients of each round, those that are not waited for included."""
    speeds: PyTree = ()
    """`systems.Speeds`, float32 `[S, R, c]` each, of any value for padding; `()` without a clock."""
    ages: PyTree = ()
    """int32 `[S, R, c]`: as in `Cohort`; `()` where all clients start from the present model."""
    factors: PyTree = ()
    """float32 `[S, R, c]`: likewise."""
    started: PyTree = ()
    """int32 `[R]`: clients that receive the model of a round, likewise."""
    schedules: tuple[StepTime, ...] = ()
    """Time of each round, where rounds do not wait for their clients."""
    waited: tuple[float, ...] = ()
    """Seconds before each round in which the server waited for enough clients."""
    tokens: PyTree = ()
    """int32 `[S, R, c]`: as in `Cohort`; `()` where there are none."""


LONGEST = 1e18
"""Seconds, and bytes a second, beyond which it makes no difference: their sums and quotients are far within float32."""


def used(table: np.ndarray, padding: int) -> np.ndarray:
    """The first columns of a plan's table, a power of two of them, beyond which there is `padding` only."""
    widest = int((table != padding).sum(axis=1).max())
    return table[:, : 1 << max(0, widest - 1).bit_length()]


def rows_seen(plan: BatchPlan, sizes: np.ndarray) -> np.ndarray:
    """Rows that a client of each size trains on in one round, repetitions included and padding not."""
    steps, per_epoch = num_steps(plan, sizes), np.maximum(steps_per_epoch(plan, sizes), 1)
    return steps // per_epoch * sizes + np.minimum(steps % per_epoch * plan.batch_size, sizes)


def deal(
    work: np.ndarray,
    num_shards: int,
    chunk: int,
    *,
    useful: np.ndarray | None = None,
    homes: np.ndarray | None = None,
    most: int | None = None,
) -> Deal | None:
    """The clients of one round on `num_shards` shards, in groups of at most `chunk`.

    Args:
      work: `[C]`: cost of each client, such as rows or steps times batch size.
      num_shards, chunk: as of the executor.
      useful: `[C]`: the part of `work` that is not padding; default all of it.
      homes: `[C]`: the shard where a client must be, -1 where it may be anywhere.
      most: clients that a round may have, for which there are places; default C.

    Returns:
      The deal, or None if the homes leave no room.
    """
    work = np.asarray(work)
    places = padded(max(1, -(-(len(work) if most is None else most) // num_shards)), chunk)
    per_shard = groups(places, chunk)
    size = places // per_shard
    order = np.argsort(-work, kind="stable")
    shards: list[list[np.ndarray]] = [[] for _ in range(num_shards)]
    loads = [(0, shard) for shard in range(num_shards)]  # (work, shard), a heap

    if homes is None or np.all(homes < 0):
        batches = [(order[at : at + size], -1) for at in range(0, len(order), size)]
    else:
        known = homes[order]
        batches = [
            (order[known == s][at : at + size], s)
            for s in range(num_shards)
            for at in range(0, (known == s).sum(), size)
        ]
        free = order[known < 0]
        batches += [(free[at : at + size], -1) for at in range(0, len(free), size)]
        batches.sort(key=lambda batch: -work[batch[0][0]])
        if len(batches) > num_shards * per_shard:
            return None
    for members, home in [b for b in batches if b[1] >= 0] + [b for b in batches if b[1] < 0]:
        waiting = []
        while True:
            if not loads:
                return None
            load, shard = heapq.heappop(loads)
            if home in (-1, shard) and len(shards[shard]) < per_shard:
                break
            waiting.append((load, shard))
        shards[shard].append(members)
        for entry in [*waiting, (load + int(work[members[0]]), shard)]:
            heapq.heappush(loads, entry)

    positions, whole = np.full((num_shards, per_shard, size), -1), 0
    for shard, members_of in enumerate(shards):
        members_of.sort(key=lambda members: -int(work[members[0]]))
        for index, members in enumerate(members_of):
            positions[shard, index, : len(members)] = members
            whole += size * int(work[members[0]])
    kept = int(np.sum(work if useful is None else useful))
    return Deal(positions.reshape(num_shards, places), 1.0 - kept / whole if whole else 0.0)


class Planner(Protocol):
    """The plans of a run."""

    def __call__(self, first: int, rounds: int, present: Present | None = None) -> Plan:
        """The plan of at least one and at most `rounds` rounds, from round `first` on."""


def planner(
    *,
    participants: Participants,
    batches: BatchPlan | None,
    num_shards: int,
    chunk: int,
    most_rounds: int,
    stay: int,
    most_rows: int | None,
    speeds: Callable[[int, np.ndarray], Speeds] | None = None,
) -> Planner:
    """The planner of a run.

    Args:
      participants: the selection of clients.
      batches: the batch plan; without it work is counted in rows.
      most_rounds: R, the most rounds of a call.
      stay: number of rounds for which a client's shard is decided at a time, where it must stay on one for a whole
        call; no call goes beyond them. 0 where clients may be anywhere. 1 for participations that read the state.
      most_rows: a call ends before the rows of its clients are more than this on any shard; None for no limit.
      speeds: `(rounds done before, client ids [n]) -> Speeds`; None without a clock.
    """

    def work_of(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if batches is None:
            return sizes, sizes
        return num_steps(batches, sizes) * batches.batch_size, rows_seen(batches, sizes)

    num_clients, most = participants.num_clients, participants.numbers.most_asked

    def dealt(number: int, home: dict[int, int], present: Present | None) -> _Round | None:
        """A round; None if clients cannot be where they were."""
        drawn = participants.drawn(number, present)
        cohort, lost = drawn.ids, drawn.lost
        sizes = np.where(lost, 0, participants.clients.windows(cohort)[1])
        work, useful = work_of(sizes)
        homes = np.array([home.get(client, -1) for client in cohort.tolist()]) if home else None
        found = deal(work, num_shards, chunk, useful=useful, homes=homes, most=most)
        if found is None:
            return None
        # Position -1 is the last, which stands for padding.
        ids = np.append(cohort, num_clients)[found.positions]
        training = np.append(np.where(lost, num_clients, cohort), num_clients)[found.positions]
        rows = np.append(sizes, 0)[found.positions].sum(axis=1)
        tokens = None if drawn.tokens is None else np.append(drawn.tokens, 0)[found.positions]
        return _Round(
            ids, training, rows, found.padding, len(cohort), _aged(drawn, found.positions), drawn.waited, tokens
        )

    def dealt_anew(number: int, present: Present | None) -> _Round:
        """A round whose clients may be anywhere."""
        found = dealt(number, {}, present)
        assert found is not None
        return found

    @functools.lru_cache(maxsize=2)
    def block(index: int) -> list[tuple[int, _Round]]:
        """Rounds `index * stay` to the next block's, each with the number of the first round it shares homes with."""
        rounds, home, since = [], {}, index * stay
        for number in range(index * stay, (index + 1) * stay):
            found = dealt(number, home, None)
            if found is None:
                home, since = {}, number
                found = dealt_anew(number, None)
            home |= {int(client): shard for shard in range(num_shards) for client in found.ids[shard]}
            rounds.append((since, found))
        return rounds

    def rounds_from(first: int, present: Present | None) -> Iterator[_Round]:
        """The rounds that a call from `first` on may have."""
        if stay <= 1:  # homes of one round are no bounds for any other
            yield from (dealt_anew(number, present) for number in range(first, first + most_rounds))
            return
        whole = block(first // stay)
        for since, found in whole[first % stay :][:most_rounds]:
            if since > first:
                return
            yield found

    def plan(first: int, rounds: int, present: Present | None = None) -> Plan:
        found: list[_Round] = []
        rows = np.zeros(num_shards, np.int64)
        for one in itertools.islice(rounds_from(first, present), min(rounds, stay) if stay else rounds):
            rows = rows + one.rows
            if found and most_rows is not None and rows.max() > most_rows:
                break
            found.append(one)
        made = _laid_out(first, found, num_clients, most_rounds, stay > 0)
        if participants.participation.versions:
            made = _with_ages(made, [one.aged for one in found if one.aged], participants.participation)
        if participants.participation.tokens:
            made = _with_tokens(made, [one.tokens for one in found])
        return made if speeds is None else made._replace(speeds=_speeds(speeds, made, num_clients))

    return plan


class _Round(NamedTuple):
    """A round, dealt."""

    ids: np.ndarray
    """`[S, c]`."""
    training: np.ndarray
    """`[S, c]`: as in `Plan`."""
    rows: np.ndarray
    """`[S]`: of the clients of each shard."""
    padding: float
    asked: int
    aged: "_Aged | None" = None
    waited: float = 0.0
    tokens: np.ndarray | None = None
    """`[S, c]`."""


class _Aged(NamedTuple):
    """Ages of a round's clients, dealt."""

    ages: np.ndarray
    """`[S, c]`."""
    started: int
    schedule: StepTime


def _aged(drawn: Drawn, positions: np.ndarray) -> _Aged | None:
    if drawn.ages is None or drawn.started is None or drawn.schedule is None:
        return None
    return _Aged(np.append(drawn.ages, 0)[positions], drawn.started, drawn.schedule)


def _with_ages(plan: Plan, rounds: Sequence[_Aged], participation: Participation) -> Plan:
    """The plan with the ages of its clients; the factor of one that is older than all models kept is 0."""
    ages, factors = np.zeros(plan.ids.shape, np.int32), np.zeros(plan.ids.shape, np.float32)
    started = np.zeros(plan.ids.shape[1], np.int32)
    for i, one in enumerate(rounds):
        ages[:, i], started[i] = one.ages, one.started
        factors[:, i] = np.where(one.ages < participation.versions, participation.factor(one.ages), 0.0)
    schedules = tuple(one.schedule for one in rounds)
    return plan._replace(ages=ages, factors=factors, started=started, schedules=schedules)


def _with_tokens(plan: Plan, rounds: Sequence[np.ndarray | None]) -> Plan:
    """The plan with the tokens of its clients."""
    tokens = np.zeros(plan.ids.shape, np.int32)
    for i, of_round in enumerate(rounds):
        assert of_round is not None
        tokens[:, i] = of_round
    return plan._replace(tokens=tokens)


def _speeds(speeds: Callable[[int, np.ndarray], Speeds], plan: Plan, num_clients: int) -> Speeds:
    """Speeds of the clients of a plan, at most `LONGEST`, and bandwidths at least 1 / `LONGEST`.

    Raises UserError for a number that no client can have.
    """
    known = np.minimum(plan.ids[:, : plan.rounds], num_clients - 1)
    rounds = [speeds(plan.first + i, known[:, i].reshape(-1)) for i in range(plan.rounds)]

    def laid(name: str, of_rounds: Sequence[np.ndarray]) -> np.ndarray:
        above = name.endswith("bandwidth")
        whole = np.ones(plan.ids.shape, np.float32)
        for i, values in enumerate(of_rounds):
            clients = known[:, i].reshape(-1)
            bad = ~((values > 0) | (values == 0) & (not above))
            if bad.any():
                raise UserError(
                    f"round {plan.first + i + 1}: the system model gives client {clients[bad][0]} the {name} "
                    f"{values[bad][0]:g}; it must be a number {'above' if above else 'from'} 0"
                )
            whole[:, i] = np.clip(values, 1 / LONGEST if above else 0.0, LONGEST).reshape(known[:, i].shape)
        return whole

    return Speeds(*(laid(name, [getattr(one, name) for one in rounds]) for name in Speeds._fields))


def laid_out_round(ids: np.ndarray, participants: Participants) -> Plan:
    """The plan of one round of these clients `[S, c]`, all of them training."""
    rows = participants.clients.windows(ids)[1].sum(axis=1)
    alone = _Round(ids, ids, rows, 0.0, int(np.count_nonzero(ids < participants.num_clients)))
    return _laid_out(0, [alone], participants.num_clients, 1, False)


def _laid_out(first: int, rounds: Sequence[_Round], num_clients: int, most_rounds: int, stay: bool) -> Plan:
    """The plan of these rounds."""
    num_shards, places = rounds[0].ids.shape
    ids = np.full((num_shards, most_rounds, places), num_clients, np.int32)
    ids[:, : len(rounds)] = np.stack([one.ids for one in rounds], axis=1)
    training = np.full_like(ids, num_clients)
    training[:, : len(rounds)] = np.stack([one.training for one in rounds], axis=1)
    width = min(most_rounds * places, num_clients) if stay else most_rounds * places
    table = np.full((num_shards, width), num_clients, np.int32)
    slots = np.full(ids.shape, width, np.int32)
    for shard in range(num_shards):
        if stay:
            clients, inverse = np.unique(ids[shard], return_inverse=True)
        else:  # every round brings its clients anew
            clients, inverse = ids[shard].reshape(-1), np.arange(width)
        table[shard, : len(clients)] = clients[:width]
        slots[shard] = np.where(ids[shard] == num_clients, width, inverse.reshape(ids[shard].shape))
    padding, asked = tuple(one.padding for one in rounds), tuple(one.asked for one in rounds)
    waited = tuple(one.waited for one in rounds)
    return Plan(first, len(rounds), ids, slots, table, padding, training, asked, waited=waited)
