"""More clients than needed are asked, and the round ends when enough have answered (Bonawitz et al. 2019, arXiv
1902.01046, who ask 130 % of the clients that they need).

    ask ceil(factor M) clients, uniform without replacement;  wait for the M that are done first

The others have received the model, and its bytes down count; their updates do not, since the round is over. They keep
their memory.

Who is done first is decided by the system model (`systems`): the seconds that a client takes for its messages and local
steps. In a run without a clock the client with the fewest local steps is. The fast, and clients with few rows, are
waited for more often, so the mean leans to them. Nothing corrects that.

Law: `unknown`, since who is used depends on speeds and sizes. Both are public in this package's notion of neighbors,
so the privacy of examples is accounted by the rounds in which their client was waited for.
"""

import fractions
import functools
import math

import numpy as np

from fedjax8.errors import UserError
from fedjax8.participation.base import Ask, Drawn, Numbers, Participation
from fedjax8.participation.uniform import sample_cohort


def overselect(factor: float = 1.3) -> Participation:
    """The participation of the first to answer.

    Args:
      factor: how many times `cohort_size` are asked, above 1; no more than there are.

    Raises:
      ValueError: a factor that is not above 1 or not finite.
    """
    if not (factor > 1 and math.isfinite(factor)):
        raise ValueError(f"factor must be above 1; got {factor}")
    numbers = functools.partial(_numbers, factor)

    def draw(ask: Ask) -> Drawn:
        ids = sample_cohort(ask.seed, ask.round, ask.num_clients, numbers(ask.num_clients, ask.cohort_size).most_asked)
        lost = np.ones(len(ids), bool)
        lost[np.argsort(ask.seconds(ids), kind="stable")[: ask.cohort_size]] = False
        return Drawn(ids.astype(np.int64), lost)

    return Participation(draw, numbers, reads_time=True)


def _numbers(factor: float, num_clients: int, cohort_size: int) -> Numbers:
    # As the decimal that was written: 1.1 * 10 is 11, and not 11.000000000000002.
    asked = min(num_clients, math.ceil(fractions.Fraction(str(factor)) * cohort_size))
    if asked == cohort_size:
        raise UserError(
            f"config.participation: all {num_clients} clients are waited for, so nobody is left to ask besides; lower "
            "cohort_size, or use --config.participation.name=uniform"
        )
    return Numbers(asked, asked, cohort_size, cohort_size)


EXAMPLES = ({}, {"factor": 2.0})
