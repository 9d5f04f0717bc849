"""Types of client selection: a component, and the one object that a whole run asks."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from fedjax8.errors import UserError
from fedjax8.types import Algorithm, Channel

WITHOUT_REPLACEMENT = "without_replacement"
"""Uniform over all subsets of `cohort_size` clients."""
POISSON = "poisson"
"""Every client on its own, with probability `cohort_size / num_clients`."""
EVERYONE = "everyone"
"""All clients in every round."""
UNKNOWN = "unknown"
"""None of these: no privacy is amplified by it, and no accountant takes it."""
LAWS = (WITHOUT_REPLACEMENT, POISSON, EVERYONE, UNKNOWN)

REPORT = "report"
"""Name of the channel of the losses that candidates report before clients are chosen."""
_STREAM = 0xC0407
"""Keeps draws of clients apart from all other draws of the same seed. A plain `default_rng([seed,
round])` would not: NumPy pads entropy with zeros, so [seed, 0] equals [seed]."""


def alike(ids: np.ndarray) -> np.ndarray:
    """float64 zeros `[n]`: clients that do not differ."""
    return np.zeros(len(ids))


class Phases(NamedTuple):
    """What clients do in a round, float `[n]` each."""

    down: np.ndarray
    """Seconds of messages down, latency included."""
    train: np.ndarray
    """Seconds of local steps."""
    up: np.ndarray
    """Seconds of messages up."""
    down_rate: np.ndarray
    """Bytes a second of its transfers down."""
    up_rate: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """float64 `[n]`: from the first byte down to the last one up."""
        return np.asarray(self.down + self.train + self.up, float)


class StepTime(NamedTuple):
    """Time of a server step that is planned on the host."""

    seconds: float
    """Since the step before."""
    peak_rate: float
    """Largest simultaneous rate of the server's link since then, in bytes a second."""


def no_phases(number: int, ids: np.ndarray, sizes: np.ndarray) -> Phases:
    """Raises UserError: this run has no clock."""
    raise UserError(
        "this participation needs to know how long clients take, and this run has no clock; choose a system model, "
        "such as --config.system.name=lognormal, in Python simulate(..., system=systems.lognormal())"
    )


def always(seconds: float, ids: np.ndarray) -> np.ndarray:
    """bool `[n]`: all of these clients are there."""
    return np.ones(len(ids), bool)


Memory = Mapping[str, Any]
"""Values of JSON that a participation remembers of the rounds before; part of a checkpoint."""


class Present(NamedTuple):
    """What a draw may read of a run's state."""

    losses: Callable[[np.ndarray], np.ndarray]
    """As in `Ask`."""
    memory: Memory
    """As in `Ask`."""
    clock: float = 0.0
    """As in `Ask`."""


class Ask(NamedTuple):
    """Arguments of a draw, all that it may depend on."""

    seed: int
    round: int
    """Rounds done before this one."""
    num_clients: int
    """Registered clients."""
    cohort_size: int
    sizes: Callable[[np.ndarray], np.ndarray]
    """Client ids `[n]` to their numbers of rows."""
    steps: Callable[[np.ndarray], np.ndarray]
    """Numbers of rows to the local steps of a client with as many."""
    losses: Callable[[np.ndarray], np.ndarray]
    """Client ids `[n]` to the mean loss of the present model on the rows of each. For draws with `reads_state`; others
    get zeros."""
    seconds: Callable[[np.ndarray], np.ndarray] = alike
    """Client ids `[n]` to the seconds that each takes in this round, from the first byte down to the last one up, by
    the system model; their local steps where a run has no clock."""
    phases: Callable[[int, np.ndarray, np.ndarray], Phases] = no_phases
    """`(round, client ids [n], their rows [n]) -> Phases` by the system model; one object in all rounds of a run."""
    available: Callable[[float, np.ndarray], np.ndarray] = always
    """`(simulated seconds since the start, client ids [n]) -> bool [n]`."""
    memory: Memory = types.MappingProxyType({})
    """What it remembers of the rounds before (`Participation.remember`); empty before the first round, and for
    forecasts."""
    clock: float = 0.0
    """Simulated seconds since the start. For draws with `reads_state`; others, and forecasts, get 0."""


class Drawn(NamedTuple):
    """The clients of one round."""

    ids: np.ndarray
    """int64 `[m]`: different clients, ascending."""
    lost: np.ndarray
    """bool `[m]`: clients that receive the model, and whose message nobody waits for."""
    ages: np.ndarray | None = None
    """int `[m]`: server steps since each client received its model; None: all have the present one."""
    started: int | None = None
    """Clients that receive the present model; None: those of `ids`."""
    schedule: StepTime | None = None
    """Time of the round, where it does not wait for its clients."""
    waited: float = 0.0
    """Seconds before the round in which the server waited for enough clients; they belong to it."""
    tokens: np.ndarray | None = None
    """int `[m]`: the walking token that each client holds, from 0 up; where `Participation.tokens`."""


class Numbers(NamedTuple):
    """Fewest and most clients of a round."""

    least_asked: int
    most_asked: int
    """Clients that receive the model; a round has as many places on the devices."""
    least_used: int
    most_used: int
    """Clients that are waited for."""


def exactly(num_clients: int, cohort_size: int) -> Numbers:
    """`cohort_size` in every round, all of them waited for."""
    return Numbers(cohort_size, cohort_size, cohort_size, cohort_size)


class Participation(NamedTuple):
    """A selection of the clients of each round; see `participation`. Its functions run on the host, in NumPy."""

    draw: Callable[[Ask], Drawn]
    """The clients of a round, a function of the `Ask` alone, so that a resumed run draws the same ones."""
    numbers: Callable[[int, int], Numbers] = exactly
    """`(num_clients, cohort_size) -> Numbers`. Raises UserError where it cannot draw from so many clients."""
    law: str = UNKNOWN
    """One of LAWS: how clients are drawn, as far as privacy accounting goes."""
    reads_state: bool = False
    """Whether it asks for losses or for its memory. The clients of a round are known only after the round before, so
    that a call has one round."""
    report_bytes: int = 0
    """Bytes that each client asked sends before it is known who is chosen."""
    versions: int = 0
    """Models that are kept, so that clients may start from older ones; 0: all clients start from the present one."""
    factor: Callable[[np.ndarray], np.ndarray] = alike
    """Ages `[n]` to the factors on the updates of clients, where `versions` is not 0."""
    reads_time: bool = False
    """Whether a draw depends on how long clients take, where a run has a clock."""
    reads_available: bool = False
    """Whether it needs, and asks, when clients are available."""
    tokens: bool = False
    """Whether its draws say which token each client holds: as many as `cohort_size`, for `api_bcd`."""
    remember: Callable[[Memory, Mapping[str, Any]], Memory] | None = None
    """`(memory, line of the log) -> memory` after each round, a function of these alone; needs `reads_state`. Lines
    then have `squared_update`, the squared norm of the round's change of the model."""


class Clients(Protocol):
    """The sizes of clients, such as `data.FederatedData` has them."""

    @property
    def num_clients(self) -> int:
        """Registered clients."""

    def windows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts and sizes of clients."""


class Participants(NamedTuple):
    """The selection of clients in one run, which planning, forecasts, shapes and accounting all ask."""

    participation: Participation
    seed: int
    cohort_size: int
    clients: Clients
    steps: Callable[[np.ndarray], np.ndarray]
    """Numbers of rows to local steps, as in `Ask`."""
    phases: Callable[[int, np.ndarray, np.ndarray], Phases] | None = None
    """As in `Ask`; None without a clock."""
    available: Callable[[float, np.ndarray], np.ndarray] = always
    """As in `Ask`."""

    @property
    def num_clients(self) -> int:
        """Registered clients."""
        return self.clients.num_clients

    @property
    def numbers(self) -> Numbers:
        """Fewest and most clients of a round."""
        return self.participation.numbers(self.num_clients, self.cohort_size)

    @property
    def loses(self) -> bool:
        """Whether some of the clients asked are not waited for."""
        numbers = self.numbers
        return (numbers.least_asked, numbers.most_asked) != (numbers.least_used, numbers.most_used)

    @property
    def varies(self) -> bool:
        """Whether anything but exactly `cohort_size` clients, all waited for, may take part in a round."""
        return self.numbers != exactly(self.num_clients, self.cohort_size)

    @property
    def law(self) -> str:
        """The law of the draws: one of LAWS, EVERYONE where no round can leave a client out."""
        return EVERYONE if self.numbers.least_used == self.num_clients else self.participation.law

    def check(self, algorithm: Algorithm, beside: "Participants | None" = None) -> None:
        """Raises UserError where there are too few clients, the algorithm needs others, or the participants `beside`,
        whose programs are shared, come in other numbers."""
        size, count, everyone = self.cohort_size, self.num_clients, algorithm.everyone
        if not 1 <= size <= count:
            raise UserError(f"cohort_size is {size}, but must be between 1 and the number of clients, {count}")
        if everyone and size < count:
            raise UserError(
                f"this algorithm needs every client in every round: set cohort_size to {count}; it is {size}"
            )
        if self.law not in LAWS:
            raise UserError(f"the law of a participation must be one of {', '.join(LAWS)}; it is {self.law!r}")
        if everyone and self.law != EVERYONE:
            raise UserError(
                "this algorithm needs every client in every round, which this participation does not promise; use "
                "--config.participation.name=uniform"
            )
        algorithm.admits(self)
        if beside and count != beside.num_clients:
            raise UserError(
                f"simulations beside each other must have as many clients, and here are {beside.num_clients} and "
                f"{count}; where seeds differ in that, such as by validation_of=clients, start them one by one"
            )
        if beside and self._shapes != beside._shapes:
            raise UserError(
                "runs side by side must have the same participation, cohort_size, and system model or none; run these "
                "one by one"
            )

    @property
    def _shapes(self) -> tuple[Any, ...]:
        """The facts that programs depend on."""
        return self.numbers, self.cohort_size, self.participation.versions, self.phases is None

    def drawn(self, number: int, present: Present | None = None) -> Drawn:
        """The clients of the round after `number` rounds; with `present` left out, as if all had the same loss and
        there was nothing to remember.

        Raises UserError where a draw breaks its promises: numbers out of bounds, unknown clients, or clients that are
        not ascending.
        """
        losses, memory, clock = Present(alike, {}) if present is None else present
        sizes = lambda ids: self.clients.windows(ids)[1]
        seconds = functools.partial(self.seconds, number)
        of_run = self.num_clients, self.cohort_size, sizes, self.steps, losses, seconds
        ask = Ask(self.seed, number, *of_run, self.phases or no_phases, self.available, memory, clock)
        found, allowed = self.participation.draw(ask), self.numbers
        asked = len(found.ids)
        used = asked - int(np.count_nonzero(found.lost))
        ascending = asked == 0 or (
            found.ids[0] >= 0 and found.ids[-1] < self.num_clients and bool(np.all(found.ids[1:] > found.ids[:-1]))
        )
        if self.participation.tokens != (found.tokens is not None):
            raise UserError(f"round {number + 1}: a participation with tokens must say which token each client holds")
        if not ascending or len(found.lost) != asked:
            raise UserError(
                f"round {number + 1}: a participation must give different clients in ascending order, each at least 0 "
                f"and below {self.num_clients}, and whether each is lost"
            )
        if not (allowed.least_asked <= asked <= allowed.most_asked and allowed.least_used <= used <= allowed.most_used):
            raise UserError(
                f"round {number + 1}: {asked} clients were drawn and {used} of them are waited for, but rounds have "
                f"room for {allowed.least_asked} to {allowed.most_asked} and {allowed.least_used} to "
                f"{allowed.most_used}; no client is left out silently, so the run ends here"
            )
        return found

    def seconds(self, number: int, ids: np.ndarray) -> np.ndarray:
        """float64 `[n]`: seconds of these clients in the round after `number` rounds; their local steps without a
        clock."""
        sizes = self.clients.windows(ids)[1]
        if self.phases is None:
            return np.asarray(self.steps(sizes), float)
        return self.phases(number, ids, sizes).seconds

    def reports(self, asked: int) -> dict[Channel, int]:
        """Messages beside those of the algorithm, in a round that asks so many clients."""
        num_bytes = self.participation.report_bytes
        return {Channel("up", REPORT, num_bytes, num_bytes): asked} if num_bytes else {}

    def usual_rows(self) -> int:
        """Rows of a usual round: the first, or the largest of the first eight where the number of clients varies."""
        rounds = range(8 if self.varies else 1)
        return max(int(self.clients.windows(self.drawn(number).ids)[1].sum()) for number in rounds)

    def same_as(self, other: "Participants") -> bool:
        """Whether another run draws the same clients by the same law."""
        mine, others = self[:3], other[:3]
        return mine == others and self.num_clients == other.num_clients


def generator(seed: int, *address: int) -> np.random.Generator:
    """The random numbers of a seed and an address, such as a round, apart from all others of the seed."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAM, *address)))


def all_kept(ids: np.ndarray) -> Drawn:
    """These clients, ascending as they are, all waited for."""
    return Drawn(ids.astype(np.int64), np.zeros(len(ids), bool))


@functools.lru_cache(maxsize=2)
def shuffled_clients(seed: int, num_clients: int) -> np.ndarray:
    """int64 `[num_clients]`: the clients in random order, the same in all rounds of a seed."""
    return generator(seed).permutation(num_clients)


def by_weight(random: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """int64 `[count]`: clients drawn one after another, each time with probability proportional to the weights of those
    that are left (successive sampling); ascending.

    Client i gets the number -log(u_i) / w_i, u_i uniform, and the smallest numbers win: the first of several
    exponential clocks with rates w_i rings first with probability w_i / sum(w), and clocks forget (Efraimidis and
    Spirakis 2006, algorithm A). Weights of 0 are never drawn. Time grows with the number of registered clients.
    """
    positive = weights > 0
    if np.count_nonzero(positive) < count:
        raise UserError(
            f"only {np.count_nonzero(positive)} clients have a positive weight, and {count} must be drawn; lower "
            "cohort_size, or use --config.participation.name=uniform"
        )
    with np.errstate(divide="ignore"):  # compared by their logarithms, so that no weight is too small
        clocks = np.log(random.standard_exponential(len(weights))) - np.log(weights)
    return np.sort(np.argpartition(np.where(positive, clocks, np.inf), count - 1)[:count])
