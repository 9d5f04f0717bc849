"""Accounting: epsilon at delta of Gaussian steps on samples, and the noise that a target epsilon needs.

A step adds N(0, (z S)^2) to a sum to which one *unit* (an example, or a client) adds a vector of norm S at most. Two
data sets are neighbors if they differ in that one unit counts for nothing in one of them (zero-out, Kairouz et al.
2021, arXiv 2103.00039), so that sizes and numbers of steps are the same for both and may be public.

    rate(q), Poisson sample            RDP of the sampled Gaussian (Mironov et al. 2019, arXiv 1908.10530), or PLD
    cohort(m, n), without replacement  RDP by Wang et al. 2019 (arXiv 1808.00087), theorem 27, and no more than that of
                                       the Gaussian without sampling
    rate(1), everyone                  the Gaussian

For sampling without replacement the theorem compares samples of which one holds another unit, which changes the sum by
2 S: its multiplier is z / 2. The stated epsilon is therefore much larger than for a Poisson sample of the same rate;
the library has no tighter bound that composes.

Steps compose; RDP turns into epsilon by Canonne et al. 2020 (arXiv 2004.00010), proposition 12. The numbers come from
the library `dp-accounting`, in NumPy on the host.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from fedjax8.data.batches import num_steps, steps_per_epoch
from fedjax8.data.federated import FederatedData
from fedjax8.errors import UserError
from fedjax8.participation import EVERYONE, POISSON, WITHOUT_REPLACEMENT, Participants, Participation, uniform
from fedjax8.types import Algorithm, BatchPlan, StepGradient

ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 384, 512, 1024)
"""Whole Renyi orders only: others are slow, and matter only for meaninglessly large epsilons."""
ACCOUNTANTS = ("rdp", "pld")
CLASSES = 64
"""Most sizes of clients that are accounted one by one, since each costs 0.05 s once."""
LARGEST_NOISE = 2.0**20
"""Largest noise multiplier that is tried for a target."""


class Sampling(NamedTuple):
    """Law by which a step's units are drawn; see `rate` and `cohort`."""

    probability: float
    size: int
    """Units drawn without replacement; 0 for a Poisson sample."""
    population: int


def rate(probability: float) -> Sampling:
    """The law that draws every unit independently with this probability; 1 for everyone."""
    if not 0 < probability <= 1:
        raise ValueError(f"a sampling probability must be in (0, 1]; got {probability}")
    return Sampling(float(probability), 0, 0)


def cohort(size: int, population: int) -> Sampling:
    """The law that draws so many of a population, uniform without replacement."""
    if not 1 <= size <= population:
        raise ValueError(f"a cohort must be between 1 and the population, {population}; got {size}")
    return Sampling(1.0, 0, 0) if size == population else Sampling(size / population, int(size), int(population))


class Facts(NamedTuple):
    """Facts about a run, for an accountant. None is protected: they must not depend on the data of a unit."""

    clients: FederatedData
    cohort_size: int
    rounds: int
    """Rounds that noise is calibrated for."""
    seed: int
    """Seed of the cohorts; see `participation`."""
    plan: BatchPlan
    participation: Participation = uniform()
    """The selection of clients: the same object that `simulate` gets."""

    @property
    def participants(self) -> Participants:
        """The selection of clients in the run."""
        steps = functools.partial(num_steps, self.plan)
        return Participants(self.participation, self.seed, self.cohort_size, self.clients, steps)

    def admits(self, participants: Participants) -> None:
        """Raises UserError unless these are the participants that are accounted for."""
        if not self.participants.same_as(participants):
            raise UserError(
                "privacy is accounted for another seed, cohort_size, number of clients or participation than the "
                "simulation has; give both the same, and the same participation object"
            )
        if self.participation.reads_time and participants.phases is not None:
            raise UserError(
                "config.participation: this one draws clients by how long they take, and privacy is accounted without "
                "the clock: others would be charged than those who take part; use --config.system.name=none, or a "
                "participation that does not ask for time, such as --config.participation.name=uniform"
            )


class WatchedFacts(Facts):
    """Facts that remember whether the number of rounds was read: noise that is calibrated for it must not be used for
    more rounds."""

    read = False

    @property
    def rounds(self) -> int:
        """Rounds that noise is calibrated for; noted as read."""
        self.read = True
        return self[2]


def sampling_of(participants: Participants) -> Sampling:
    """The law by which a round's clients are drawn, for client-level privacy.

    Raises:
      UserError: the law of the participation is unknown.
    """
    law, size, count = participants.law, participants.cohort_size, participants.num_clients
    if law == EVERYONE:
        return rate(1)
    if law == POISSON:
        return rate(size / count)
    if law == WITHOUT_REPLACEMENT:
        return cohort(size, count)
    raise UserError(
        "config.participation: this one follows no law that an accountant knows, so no epsilon of clients can be "
        "stated; use --config.participation.name=poisson or uniform"
    )


def check_rows(clients: FederatedData) -> None:
    """UserError if clients share rows, since then an example takes part with each of them."""
    held = np.zeros(clients.num_positions + 1, np.int64)
    np.add.at(held, clients.starts, 1)
    np.add.at(held, clients.starts + clients.sizes, -1)
    held = np.cumsum(held)[:-1]
    if clients.order is not None:
        held = np.bincount(clients.order, weights=held)
    if held.max(initial=0) > 1:
        raise UserError(
            f"a row belongs to {int(held.max())} clients, but the privacy of examples is accounted for clients that "
            "share none"
        )


def library() -> Any:
    """The module dp_accounting; UserError where it is not installed."""
    try:
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as error:
        raise UserError("privacy accounting needs dp-accounting: pip install 'fedjax8[privacy]'") from error
    return dp_accounting


def check_delta(delta: float) -> None:
    """ValueError unless 0 < delta < 1."""
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1; got {delta}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the library's warnings of orders that it leaves out."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@functools.lru_cache(maxsize=4096)
def rdp(noise_multiplier: float, sampling: Sampling) -> np.ndarray:
    """float64 `[len(ORDERS)]`: Renyi divergence of one step at each of ORDERS; infinite without noise."""
    orders = np.asarray(ORDERS, float)
    if noise_multiplier == 0:
        return np.full(len(ORDERS), np.inf)
    gaussian = orders / (2 * noise_multiplier**2)
    if sampling.probability == 1:
        return gaussian
    dp = library()
    if not sampling.size:
        relation = dp.NeighboringRelation.REPLACE_SPECIAL
        event = dp.PoissonSampledDpEvent(sampling.probability, dp.GaussianDpEvent(noise_multiplier))
    else:
        relation = dp.NeighboringRelation.REPLACE_ONE
        inner = dp.GaussianDpEvent(noise_multiplier / 2)
        event = dp.SampledWithoutReplacementDpEvent(sampling.population, sampling.size, inner)
    accountant = dp.rdp.RdpAccountant(ORDERS, relation)
    with _quiet():
        accountant.compose(event)
    return np.minimum(accountant.rdp, gaussian)


def epsilon_of(divergences: np.ndarray, delta: float) -> float:
    """The smallest epsilon that Renyi divergences at ORDERS prove for `delta`."""
    orders = np.asarray(ORDERS, float)
    found = divergences + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    return max(0.0, float(np.min(found)))


def epsilon(noise_multiplier: float, delta: float, *, steps: int, sampling: Sampling, accountant: str = "rdp") -> float:
    """Epsilon at `delta` of `steps` steps.

    Args:
      noise_multiplier: z, the noise's deviation over the norm of one unit's term.
      accountant: `rdp` (fast, an upper bound), or `pld` (numerical composition of privacy losses: tight, seconds;
        not for cohorts without replacement).

    Raises:
      ValueError: settings out of range, or `pld` for a cohort.
      UserError: dp-accounting is not installed.

    Example:
      >>> round(epsilon(1.1, 1e-5, steps=60 * 60_000 // 256, sampling=rate(256 / 60_000)), 2)
      2.6
    """
    check_delta(delta)
    if noise_multiplier < 0 or steps < 0:
        raise ValueError(f"noise_multiplier and steps must not be negative; got {noise_multiplier} and {steps}")
    if accountant not in ACCOUNTANTS:
        raise ValueError(f"accountant must be one of {', '.join(ACCOUNTANTS)}; got {accountant!r}")
    if steps == 0 or noise_multiplier == 0:
        return math.inf if steps else 0.0
    if accountant == "rdp":
        return epsilon_of(steps * rdp(float(noise_multiplier), sampling), delta)
    if sampling.size:
        raise ValueError("accountant 'pld' knows Poisson samples and everyone, not cohorts without replacement")
    dp = library()
    composed = dp.pld.PLDAccountant(dp.NeighboringRelation.REPLACE_SPECIAL)
    event = dp.GaussianDpEvent(noise_multiplier)
    if sampling.probability < 1:
        event = dp.PoissonSampledDpEvent(sampling.probability, event)
    composed.compose(event, int(steps))
    return float(composed.get_epsilon(delta))


def least_noise(target_epsilon: float, spent: Any, precision: float = 1e-3) -> float:
    """The smallest noise multiplier z, up to a factor 1 + precision, with `spent(z) <= target_epsilon`.

    `spent` falls with z. ValueError if the target is not above 0, or nothing up to LARGEST_NOISE reaches it.
    """
    if not target_epsilon > 0:
        raise ValueError(f"target_epsilon must be above 0; got {target_epsilon}")
    high = 1.0
    while spent(high) > target_epsilon:
        high *= 2
        if high > LARGEST_NOISE:
            raise ValueError(f"no noise reaches epsilon {target_epsilon} at this delta; choose a larger one")
    low = high / 2
    while spent(low) <= target_epsilon and low > 1 / LARGEST_NOISE:
        high, low = low, low / 2
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target_epsilon else (middle, high)
    return high


def calibrate(target_epsilon: float, delta: float, *, steps: int, sampling: Sampling, accountant: str = "rdp") -> float:
    """The smallest noise multiplier, up to 0.1 %, whose `epsilon` does not exceed the target."""
    return least_noise(
        target_epsilon, lambda z: epsilon(z, delta, steps=steps, sampling=sampling, accountant=accountant)
    )


class ExampleSteps:
    """Largest privacy loss of any client's example after each round, where every step of a client is a Gaussian step.

    Cohorts follow from the seed and from public facts such as sizes, so a client is charged for the rounds it took part
    in, its number of steps in each, at its own rate: no secrecy of the cohort is claimed. One that is asked and not
    waited for sends nothing, and is charged nothing.

    Raises:
      UserError: clients share rows, the cohort depends on their rows (a participation with `reads_state`), or
        dp-accounting is needed and not installed.
    """

    def __init__(self, facts: Facts, sampling: str):
        """`sampling`, one of `data.batches.SAMPLING`: `poisson` for steps at rate min(1, B / n); `shuffled`, where an
        example is in one batch an epoch, for a Gaussian step an epoch."""
        check_rows(facts.clients)
        if facts.participation.reads_state:
            raise UserError(
                "config.participation: this one reads the clients' losses or updates, and so the rows that are to be "
                "protected; use one that does not read them, such as --config.participation.name=uniform"
            )
        if facts.participation.versions:
            raise UserError(
                "config.participation: no accountant of this package plans the arrivals of rounds that do not wait, so "
                "that no epsilon can be stated; use --config.participation.name=uniform"
            )
        self._facts = facts
        sizes, self._class_of = np.unique(facts.clients.sizes, return_inverse=True)
        per_round = num_steps(facts.plan, sizes)
        if sampling == "poisson":
            self._rates = np.minimum(1.0, facts.plan.batch_size / np.maximum(sizes, 1))
            self._steps = per_round
        else:
            self._rates = np.ones(len(sizes))
            self._steps = -(-per_round // np.maximum(steps_per_epoch(facts.plan, sizes), 1))
        if len(sizes) > CLASSES:  # sizes that are near each other are charged for the worst of them
            group = np.arange(len(sizes)) * CLASSES // len(sizes)
            first = np.searchsorted(group, np.arange(CLASSES))
            self._class_of = group[self._class_of]
            self._rates = np.maximum.reduceat(self._rates, first)
            self._steps = np.maximum.reduceat(self._steps, first)
        if np.any(self._rates < 1):
            library()  # before the run, not after its first round
        self._round, self._count = 0, np.zeros(facts.clients.num_clients, np.int64)
        self._most = np.zeros(len(self._rates), np.int64)

    def steps(self, rounds: int) -> list[tuple[float, int]]:
        """`(rate, steps)` after so many rounds, of the clients of which none is worse than another in both."""
        facts = self._facts
        if rounds < self._round:
            self._round = 0
            self._count[:], self._most[:] = 0, 0
        participants = facts.participants
        for number in range(self._round, rounds):
            drawn = participants.drawn(number)
            ids = drawn.ids[~drawn.lost]
            self._count[ids] += 1
            np.maximum.at(self._most, self._class_of[ids], self._count[ids])
        self._round = rounds
        taken, front, most = self._most * self._steps, [], 0
        for i in np.lexsort((-taken, -self._rates)):
            if taken[i] > most:
                most = int(taken[i])
                front.append((float(self._rates[i]), most))
        return front

    def epsilon(self, noise_multiplier: float, delta: float, rounds: int) -> float:
        """Epsilon by RDP of the client with the largest loss; 0 if none took part yet."""
        return max(
            (epsilon(noise_multiplier, delta, steps=n, sampling=rate(q)) for q, n in self.steps(rounds)), default=0.0
        )


def accounted(algorithm: Algorithm, gradient: StepGradient) -> Algorithm:
    """`algorithm`, whose log also has the privacy loss of examples by `gradient`: as `epsilon` and `delta`, or where
    these are the algorithm's own, `example_epsilon` and `example_delta`."""

    def privacy(rounds: int) -> dict[str, float]:
        own, examples = algorithm.privacy(rounds), gradient.privacy(rounds)
        return own | ({f"example_{name}": value for name, value in examples.items()} if own else examples)

    def admits(participants: Participants) -> None:
        algorithm.admits(participants)
        gradient.admits(participants)

    return algorithm._replace(privacy=privacy, admits=admits)
