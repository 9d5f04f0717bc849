"""The order in which clients arrive at a server that does not wait: an event queue on the host.

    start      a client that is free receives the newest model, version v, at time t
    arrival    at t + its seconds; it goes into the buffer, and another client starts
    step       as the buffer has K clients the server makes version s + 1 of version s;  age = s - v

Arrivals at the same moment come in the order in which the clients started, and all of them before the next start. A
client is free unless it is on its way or in the buffer, so that no client is in a server step twice. Which clients
start is a function of the seed and the version alone, as far as they are free: those whom `uniform` would draw in that
round, then others at random.
"""

import heapq
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from fedjax8.errors import UserError
from fedjax8.participation.base import Ask, StepTime, generator
from fedjax8.participation.uniform import sample_cohort

_ORDER, _OTHERS = 1, 2
"""Addresses of draws, apart from those of cohorts."""
REST = 60.0
"""Seconds until a server looks again, where no client is on its way and none is available."""
LOOKS = 100_000
"""Times that it looks before it gives up."""
KEPT = 1024
"""Server steps that are kept, for draws that are asked for again."""


class Flight(NamedTuple):
    """A client on its way."""

    arrives: float
    order: int
    """Number of clients that started before."""
    client: int
    version: int


class Step(NamedTuple):
    """A server step."""

    ids: np.ndarray
    """int64 `[K]`, ascending."""
    ages: np.ndarray
    """int64 `[K]`."""
    started: int
    """Clients that received the version that the step starts from."""
    schedule: StepTime


class Arrivals:
    """The server steps of a run, made in order."""

    def __init__(self, ask: Ask, concurrency: int):
        self._ask, self._concurrency = ask, concurrency
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._steps: dict[int, Step] = {}
        self._next = 0
        self._made = self._simulated()

    def of(self, ask: Ask) -> bool:
        """Whether these are the arrivals of the run that asks."""
        mine = self._ask
        same = (ask.seed, ask.num_clients, ask.cohort_size) == (mine.seed, mine.num_clients, mine.cohort_size)
        return same and ask.phases is mine.phases

    def step(self, number: int) -> Step:
        """Server step `number`, from 0."""
        with self._lock:
            if number < self._next and number not in self._steps:
                self._begin()
            while self._next <= number:
                try:
                    self._steps[self._next] = next(self._made)
                except UserError:
                    self._begin()  # a generator that has raised is over, and would give no reason the next time
                    raise
                self._steps.pop(self._next - KEPT, None)
                self._next += 1
            return self._steps[number]

    def _simulated(self) -> Iterator[Step]:
        """All server steps, one after another."""
        size, candidates, links = self._ask.cohort_size, _Candidates(self._ask, self._concurrency), _Links()
        flights: list[Flight] = []
        buffer: list[Flight] = []
        busy: set[int] = set()
        now, begun, version, started, total, looks = 0.0, 0.0, 0, 0, 0, 0
        free = self._concurrency
        while True:
            for client, phases in candidates.take(version, now, free, busy):
                heapq.heappush(flights, Flight(now + sum(phases[:3]), total, client, version))
                links.add(now, phases)
                busy.add(client)
                free, started, total = free - 1, started + 1, total + 1
            if not flights:
                now, looks = now + REST, looks + 1
                if looks > LOOKS:
                    raise UserError(
                        f"no client is available in the {LOOKS * REST:,.0f} s after {begun:,.0f} s; see the intervals "
                        "of config.system"
                    )
                continue
            now, looks = flights[0].arrives, 0
            while flights and flights[0].arrives == now:
                buffer.append(heapq.heappop(flights))
                free += 1
                if len(buffer) == size:
                    yield self._step(buffer, version, started, StepTime(now - begun, links.peak(begun, now)))
                    busy -= {flight.client for flight in buffer}
                    version, begun, started, buffer = version + 1, now, 0, []

    def _step(self, buffer: list[Flight], version: int, started: int, schedule: StepTime) -> Step:
        ids = np.array([flight.client for flight in buffer], np.int64)
        ages = version - np.array([flight.version for flight in buffer], np.int64)
        order = np.argsort(ids)
        return Step(ids[order], ages[order], started, schedule)


class _Candidates:
    """Clients to start, and their phases, by version."""

    def __init__(self, ask: Ask, concurrency: int):
        self._ask, self._first = ask, concurrency
        self._version = -1
        self._queue: list[tuple[int, tuple[float, ...]]] = []
        self._drawn = 0

    def take(self, version: int, now: float, count: int, busy: set[int]) -> list[tuple[int, tuple[float, ...]]]:
        """Up to `count` clients that are free and available, fewer where there are no more."""
        if version != self._version:
            self._version, self._queue, self._drawn = version, [], 0
        found: list[tuple[int, tuple[float, ...]]] = []
        away: list[tuple[int, tuple[float, ...]]] = []
        taken: set[int] = set()
        while len(found) < count:
            if not self._queue and not self._more():
                break
            one = self._queue.pop()
            if one[0] in busy or one[0] in taken:
                continue
            if not self._ask.available(now, np.array([one[0]]))[0]:
                away.append(one)
                continue
            found.append(one)
            taken.add(one[0])
        self._queue.extend(reversed(away))  # asked again at the next start
        return found

    def _more(self) -> bool:
        """Whether there were more candidates of this version; each client is one three times at most."""
        ask = self._ask
        wanted = self._first if self._version == 0 else ask.cohort_size
        if self._drawn == 0:
            ids = sample_cohort(ask.seed, self._version, ask.num_clients, min(wanted, ask.num_clients))
            ids = generator(ask.seed, self._version, _ORDER).permutation(ids)
        elif self._drawn <= 2:
            count = min(4 * wanted, ask.num_clients) if self._drawn == 1 else ask.num_clients
            ids = generator(ask.seed, self._version, _OTHERS, self._drawn).choice(ask.num_clients, count, replace=False)
        else:
            return False
        self._drawn += 1
        phases = ask.phases(self._version, ids, ask.sizes(ids))
        of_client = zip(*(np.asarray(x, float).tolist() for x in phases), strict=True)
        self._queue = list(zip(ids.tolist(), of_client, strict=True))[::-1]
        return True


class _Links:
    """Transfers on the server's link, for the largest simultaneous rate."""

    def __init__(self) -> None:
        self._down: list[tuple[float, float, float]] = []
        self._up: list[tuple[float, float, float]] = []

    def add(self, start: float, phases: tuple[float, ...]) -> None:
        """The transfers of a client that starts."""
        down, train, up, down_rate, up_rate = phases
        self._down.append((start, start + down, down_rate))
        self._up.append((start + down + train, start + down + train + up, up_rate))

    def peak(self, begin: float, end: float) -> float:
        """Bytes a second of either direction, at most, from `begin` to `end`; forgets what is over."""
        largest = max(_largest(transfers, begin, end) for transfers in (self._down, self._up))
        self._down = [transfer for transfer in self._down if transfer[1] > end]
        self._up = [transfer for transfer in self._up if transfer[1] > end]
        return largest


def _largest(transfers: list[tuple[float, float, float]], begin: float, end: float) -> float:
    spans = np.array(transfers).reshape(-1, 3)
    starts, ends, rates = spans.T
    there = (ends > starts) & (ends > begin) & (starts < end)
    starts, ends, rates = np.maximum(starts[there], begin), ends[there], rates[there]
    times, changes = np.concatenate([ends, starts]), np.concatenate([-rates, rates])
    return float(np.cumsum(changes[np.argsort(times, kind="stable")]).max(initial=0.0))


Made = Callable[[Ask], Arrivals]


def kept_arrivals(concurrency: int) -> Made:
    """The arrivals of the run that asks, kept from one draw to the next."""
    last: list[Arrivals] = []
    lock = threading.Lock()

    def arrivals(ask: Ask) -> Arrivals:
        with lock:
            if not last or not last[0].of(ask):
                last[:] = [Arrivals(ask._replace(round=0), concurrency)]
            return last[0]

    return arrivals
