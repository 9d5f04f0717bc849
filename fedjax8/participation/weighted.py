"""Drawn by weight: M different clients one after another, each time with probability proportional to the weights of
those that are left, by default their numbers of rows.

    P(next is i) = w_i / sum of w_j over those not drawn yet

A mean that weighs clients by their rows then counts rows twice, once in the draw and once in the weight. For M = 1 the
*unweighted* mean of updates is unbiased for the mean over all rows; for M > 1 it is close to it as long as no client
has a large share, and leans to small clients otherwise, since a client cannot be drawn twice (Li et al. 2020, arXiv
1907.02189, sections 3.2 and 3.3, compare both ways of drawing and weighing). Use `--config.algorithm.weighting=uniform`
with it. Clients without rows are never drawn.

Law: `unknown`. Sizes are public in this package's notion of neighbors, so the privacy of examples is accounted by the
rounds that their client was in. Time grows with the number of registered clients.
"""

import functools

import numpy as np

from fedjax8.errors import UserError
from fedjax8.participation.base import (
    Ask,
    Drawn,
    Numbers,
    Participation,
    all_kept,
    by_weight,
    exactly,
    generator,
)


def weighted(weights: tuple[float, ...] | None = None) -> Participation:
    """The participation of clients by weight.

    Args:
      weights: one for each client, not negative; by default its number of rows.

    Raises:
      ValueError: a weight that is negative or not finite.
    """
    given = None if weights is None else np.asarray(weights, float)
    if given is not None and not (given.ndim == 1 and np.all(np.isfinite(given)) and np.all(given >= 0)):
        raise ValueError(f"weights must be finite and not negative; got {weights}")

    def draw(ask: Ask) -> Drawn:
        of_clients = weights_by_rows(ask) if given is None else given
        return all_kept(by_weight(generator(ask.seed, ask.round), of_clients, ask.cohort_size))

    return Participation(draw, functools.partial(_numbers, None if given is None else len(given)))


def weights_by_rows(ask: Ask) -> np.ndarray:
    """float64 `[num_clients]`: rows of each client."""
    return np.asarray(ask.sizes(np.arange(ask.num_clients)), float)


def _numbers(given: int | None, num_clients: int, cohort_size: int) -> Numbers:
    if given not in (None, num_clients):
        raise UserError(f"config.participation.weights: {given} weights for {num_clients} clients; give one for each")
    if cohort_size == num_clients:
        raise UserError(
            f"config.participation: all {num_clients} clients take part in every round, so weights decide nothing; "
            "lower cohort_size, or use --config.participation.name=uniform"
        )
    return exactly(num_clients, cohort_size)


EXAMPLES = ({},)
