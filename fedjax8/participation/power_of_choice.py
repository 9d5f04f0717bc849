"""The clients with the largest losses, out of a few candidates (Cho, Wang and Joshi 2020, arXiv 2010.01243, section 4).

    1. draw d candidates, M <= d <= N, without replacement, with probability proportional to their shares of the data
    2. send them the model; each reports its loss, the mean over all of its rows
    3. the M candidates with the largest losses take part

Traffic: all d candidates receive the model, and its bytes down count for all; every candidate reports its loss as a
float32, 4 bytes up in the channel `report`. Candidates that are not chosen send nothing else.

Choosing by loss speeds up training at first and leaves a bias toward clients that are hard to fit, which grows with d.
A loss that is not finite counts as the smallest: a client that diverged is not asked for ever. Candidates of equal loss
are taken by number.

The paper's experiments average the updates of those chosen unweighted (`--config.algorithm.weighting=uniform`).
Inferred: losses are those of the server's model as it is evaluated, not of the encoded message, and of whole clients,
not of a batch (the paper's cheaper variants `cpow-d` and `rpow-d` are not here). Attackers report as others do.

Law: `unknown`. Who is drawn depends on the clients' rows, so no privacy is accounted for beside it, of clients or of
examples. A call has one round, and nothing is prefetched.
"""

import functools

import numpy as np

from fedjax8.errors import UserError
from fedjax8.participation.base import Ask, Drawn, Numbers, Participation, by_weight, generator
from fedjax8.participation.weighted import weights_by_rows

REPORT_BYTES = 4
"""Bytes of a loss, float32."""


def power_of_choice(candidates: int = 0) -> Participation:
    """The participation of the candidates with the largest losses.

    Args:
      candidates: d, how many are asked for their loss; 0 for twice `cohort_size`, or all clients if these are fewer.

    Raises:
      ValueError: a negative number; UserError, when the run is made, where d is not above `cohort_size` or there are
        not as many clients.
    """
    if candidates < 0:
        raise ValueError(f"candidates must not be negative; got {candidates}")
    numbers = functools.partial(_numbers, candidates)

    def draw(ask: Ask) -> Drawn:
        count = numbers(ask.num_clients, ask.cohort_size).most_asked
        ids = by_weight(generator(ask.seed, ask.round), weights_by_rows(ask), count)
        losses = np.asarray(ask.losses(ids), float)
        ranked = np.argsort(-np.where(np.isfinite(losses), losses, -np.inf), kind="stable")
        lost = np.ones(count, bool)
        lost[ranked[: ask.cohort_size]] = False
        return Drawn(ids, lost)

    return Participation(draw, numbers, reads_state=True, report_bytes=REPORT_BYTES)


def _numbers(candidates: int, num_clients: int, cohort_size: int) -> Numbers:
    asked = candidates or min(2 * cohort_size, num_clients)
    if not cohort_size < asked <= num_clients:
        raise UserError(
            f"config.participation: {asked} candidates for {cohort_size} places among {num_clients} clients leave "
            f"nothing to choose; candidates must be above cohort_size, {cohort_size}, and at most the number of clients"
        )
    return Numbers(asked, asked, cohort_size, cohort_size)


EXAMPLES = ({}, {"candidates": 5})
