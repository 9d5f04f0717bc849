"""Uniform without replacement: every subset of `cohort_size` clients is as likely as any other, anew in every round.

    P(cohort = s) = 1 / binomial(N, M)     for every s with |s| = M

Law: `without_replacement`, and `everyone` where M = N. Time and memory of a draw grow with the cohort, not with the
number of registered clients.
"""

import numpy as np

from fedjax8.errors import UserError
from fedjax8.participation.base import WITHOUT_REPLACEMENT, Ask, Drawn, Participation, all_kept, generator


def sample_cohort(seed: int, round_number: int, num_clients: int, cohort_size: int) -> np.ndarray:
    """int32 `[cohort_size]`: different client ids in ascending order, uniform over all subsets of that size.

    A function of its arguments alone, so a resumed run needs no sampler state. Time and memory grow with the
    cohort (at most about twenty times it), not with the number of clients.

    >>> sample_cohort(seed=0, round_number=7, num_clients=10_000_000, cohort_size=3).shape
    (3,)
    """
    if num_clients < 1:
        raise UserError(f"num_clients is {num_clients}; it must be at least 1")
    if not 1 <= cohort_size <= num_clients:
        raise UserError(
            f"cohort_size is {cohort_size} of {num_clients} clients; it must be between 1 and {num_clients}"
        )
    if seed < 0 or round_number < 0:
        raise UserError(f"seed is {seed} and round_number {round_number}; neither may be negative")
    # Without shuffle, NumPy draws by Floyd's method into a hash set; where the cohort is more than 1/20 of
    # the clients, by the tail of a shuffled range.
    ids = generator(seed, round_number).choice(num_clients, size=cohort_size, replace=False, shuffle=False)
    return np.sort(ids).astype(np.int32)


def _draw(ask: Ask) -> Drawn:
    return all_kept(sample_cohort(ask.seed, ask.round, ask.num_clients, ask.cohort_size))


_UNIFORM = Participation(_draw, law=WITHOUT_REPLACEMENT)


def uniform() -> Participation:
    """The participation of `cohort_size` clients drawn without replacement."""
    return _UNIFORM


EXAMPLES = ({},)
