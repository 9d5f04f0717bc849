"""Walking tokens: M = `cohort_size` tokens, each at one client, go to a neighbor after every round.

    cycle     without a topology: client c is followed by c + 1, and tokens begin as far apart as they can
    random    on a topology: to one of those who hear the client, each as likely

No two tokens are at one client. One for which no neighbor is free stays where it is; where that is taken too, it waits
for a round. On a graph whose workers have different numbers of neighbors, those with more are visited more often.

Law: `unknown`. For the algorithms `ibcd` and `api_bcd`, which keep a model in each token.
"""

import functools
import threading
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.participation.base import Ask, Drawn, Numbers, Participation, generator
from fedjax8.types import Topology

_WALK = 0x3A1C
"""Address of the draws, apart from those of other participations."""
KEPT = 4096
"""Rounds whose places are kept, for draws that are asked for again."""


@checked
def walk(topology: Topology | None = None) -> Participation:
    """The participation of the clients that hold a token.

    Args:
      topology: where a token may go, from `topologies`; None: by turns.

    Raises:
      UserError: when a run is set up, if the topology has no such number of workers.
    """
    draw = _by_turns if topology is None else _Walks(topology).draw
    return Participation(draw, functools.partial(_numbers, topology), tokens=True)


def _starts(ask: Ask) -> np.ndarray:
    return np.arange(ask.cohort_size) * ask.num_clients // ask.cohort_size


def _drawn(places: np.ndarray) -> Drawn:
    """The clients at these places `[M]`, -1 for a token that waits."""
    there = np.flatnonzero(places >= 0)
    order = there[np.argsort(places[there])]
    return Drawn(places[order].astype(np.int64), np.zeros(len(order), bool), tokens=order)


def _by_turns(ask: Ask) -> Drawn:
    return _drawn((_starts(ask) + ask.round) % ask.num_clients)


class _Walks:
    """The walks of the run that asks, kept from one draw to the next."""

    def __init__(self, topology: Topology):
        self._topology = topology
        self._lock = threading.Lock()
        self._run: tuple[int, int, int] | None = None
        self._rounds: dict[int, np.ndarray] = {}
        self._at = np.zeros(0, np.int64)
        self._next = 0
        self._hearers: list[np.ndarray] = []

    def draw(self, ask: Ask) -> Drawn:
        """The clients of a round."""
        with self._lock:
            run = ask.seed, ask.num_clients, ask.cohort_size
            if run != self._run or (ask.round < self._next and ask.round not in self._rounds):
                self._run, self._rounds, self._next, self._at, self._hearers = run, {}, 0, _starts(ask), []
            while self._next <= ask.round:
                self._rounds[self._next] = self._step(ask, self._next)
                self._rounds.pop(self._next - KEPT, None)
                self._next += 1
            return _drawn(self._rounds[ask.round])

    def _step(self, ask: Ask, number: int) -> np.ndarray:
        """Places of the tokens in a round, -1 for one that waits."""
        if not number:
            return self._at.copy()
        if not self._hearers or self._topology.changes:
            self._hearers = hearers(self._topology.graph(number - 1, ask.num_clients))
        random = generator(ask.seed, number, _WALK)
        taken: set[int] = set()
        places = np.full(len(self._at), -1)
        for token, at in enumerate(self._at.tolist()):
            free = [int(c) for c in self._hearers[at] if int(c) not in taken] or [c for c in (at,) if c not in taken]
            if free:
                places[token] = self._at[token] = free[random.integers(len(free))]
                taken.add(int(places[token]))
        return places


def hearers(graph: Any) -> list[np.ndarray]:
    """Those who hear each worker, ascending."""
    neighbors, weights = np.asarray(graph.neighbors), np.asarray(graph.weights)
    receiver, slot = np.nonzero(weights > 0)
    sender = neighbors[receiver, slot]
    order = np.lexsort((receiver, sender))
    ends = np.cumsum(np.bincount(sender, minlength=len(neighbors)))
    return np.split(receiver[order], ends[:-1])


def _numbers(topology: Topology | None, num_clients: int, cohort_size: int) -> Numbers:
    if topology is None:
        return Numbers(cohort_size, cohort_size, cohort_size, cohort_size)
    if min((len(found) for found in hearers(topology.graph(0, num_clients))), default=0) < 1 and not topology.changes:
        raise UserError(
            "config.participation.topology: there is a client whom no other hears, so that a token would stay there; "
            "connect it, or leave the topology out"
        )
    least = 1 if cohort_size > 1 else cohort_size
    return Numbers(least, cohort_size, least, cohort_size)


EXAMPLES = ({},)
