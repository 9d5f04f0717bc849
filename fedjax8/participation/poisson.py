"""Poisson sampling: every client takes part on its own, with probability q = M / N; M is the expected cohort.

    P(cohort = s) = q^|s| (1 - q)^(N - |s|)

A cohort's size X is Binomial(N, q), so it varies and may be 0: in such a round nobody trains, and the model stays as it
is (`dp_fedavg` adds its noise and steps all the same). Drawn as X and then X clients without replacement, which is the
same law and costs no more than the cohort.

Rounds are padded to a fixed number b of places, since programs have fixed shapes. Nobody is ever left out for want of
one: b is the smallest number for which the chance that any of 10^6 rounds has more clients is below 1e-9,

    P(X > b) <= p(b + 1) / (1 - p(b + 2) / p(b + 1)) <= 1e-15,     p(k) = binomial(N, k) q^k (1 - q)^(N - k)

(p falls ever faster above its mode, so the tail is below that geometric series), and a round that has more all the same
ends the run with an error. Padding costs the work of empty places only where several clients are vmapped.

Law: `poisson`, by which `dp_fedavg` states an epsilon that is much lower than for a cohort of fixed size.
"""

import functools
import math

import numpy as np

from fedjax8.errors import UserError
from fedjax8.participation.base import POISSON, Ask, Drawn, Numbers, Participation, all_kept, generator

CHANCE = 1e-9
"""Largest chance that any round of a run has more clients than places."""
ROUNDS = 1_000_000
"""Rounds of the longest run that this chance covers."""


def log_chance_of_more(num_clients: int, cohort_size: int, bound: int) -> float:
    """An upper bound on log P(X > bound) of X ~ Binomial(num_clients, cohort_size / num_clients), for a bound from the
    mean up; -inf where there are no more clients."""
    first = bound + 1
    if first > num_clients or cohort_size == num_clients:
        return -math.inf if first > num_clients else 0.0
    q = cohort_size / num_clients
    log_p = math.lgamma(num_clients + 1) - math.lgamma(first + 1) - math.lgamma(num_clients - first + 1)
    log_p += first * math.log(q) + (num_clients - first) * math.log1p(-q)
    ratio = (num_clients - first) / (first + 1) * q / (1 - q)
    return log_p - math.log1p(-ratio)


@functools.lru_cache(maxsize=64)
def bound(num_clients: int, cohort_size: int) -> int:
    """The smallest b from the mean up for which the chance that any of ROUNDS rounds has more clients is below CHANCE.

    >>> bound(1000, 10)
    44
    """
    enough, low, high = math.log(CHANCE / ROUNDS), cohort_size, num_clients
    while low < high:
        middle = (low + high) // 2
        if log_chance_of_more(num_clients, cohort_size, middle) <= enough:
            high = middle
        else:
            low = middle + 1
    return low


def _draw(ask: Ask) -> Drawn:
    random = generator(ask.seed, ask.round)
    count = int(random.binomial(ask.num_clients, ask.cohort_size / ask.num_clients))
    ids = random.choice(ask.num_clients, size=count, replace=False, shuffle=False)
    return all_kept(np.sort(ids))


def _numbers(num_clients: int, cohort_size: int, most: int | None = None) -> Numbers:
    needed = bound(num_clients, cohort_size)
    if most is not None and most < needed:
        raise UserError(
            f"config.participation.most is {most}, but of {num_clients} clients, {cohort_size} a round in expectation, "
            f"more than that are drawn in one of {ROUNDS:,} rounds with a chance above {CHANCE:g}; allowed are "
            f"{needed} and more, or leave it out"
        )
    least = num_clients if cohort_size == num_clients else 0
    places = needed if most is None else min(most, num_clients)
    return Numbers(least, places, least, places)


_POISSON = Participation(_draw, _numbers, POISSON)


def poisson(most: int | None = None) -> Participation:
    """The participation of every client on its own.

    Args:
      most: places of a round. By default the fewest that are enough; fewer are refused when the run is made.
    """
    return _POISSON if most is None else _POISSON._replace(numbers=functools.partial(_numbers, most=most))


EXAMPLES = ({}, {"most": 1_000_000})
