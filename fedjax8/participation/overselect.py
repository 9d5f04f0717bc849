"""More clients than needed are asked, and the round ends when enough have answered (Bonawitz et al. 2019, arXiv
1902.01046, who ask 130 % of the clients that they need).

    ask ceil(factor M) clients, uniform without replacement;  wait for the M that are done first

The others have received the model, and its bytes down count; their updates do not, since the round is over. They keep
their memory.

Time model, this project's: client i takes

    v_i e_ir steps_i,     v_i = exp(spread u_i),   e_ir = exp(jitter u_ir),     u standard normal

where steps_i are its local steps by the batch plan, v_i is the slowness of its device, drawn once for each client, and
e_ir is drawn anew in every round. Transfers take no time in it. `dropouts.deadline` has devices and links of its own,
which these are not. The fast, and clients with few rows, are waited for more often, so the mean leans to them; a client
without rows is always done at once. Nothing corrects that.

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


def overselect(factor: float = 1.3, *, spread: float = 0.5, jitter: float = 0.2, seed: int = 0) -> Participation:
    """The participation of the first to answer.

    Args:
      factor: how many times `cohort_size` are asked, above 1; no more than there are.
      spread, jitter: deviations of the logarithm of a client's slowness, for good and in one round.
      seed: of the devices, apart from the run's seed: runs of several seeds have the same devices.

    Raises:
      ValueError: a factor that is not above 1 or not finite, a negative deviation, or a seed out of range.
    """
    if not (factor > 1 and math.isfinite(factor)):
        raise ValueError(f"factor must be above 1; got {factor}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed must be a whole number from 0 to 2**64 - 1; got {seed}")
    if not (0 <= spread < math.inf and 0 <= jitter < math.inf):
        raise ValueError(f"spread and jitter must not be negative; got {spread} and {jitter}")
    numbers = functools.partial(_numbers, factor)

    def draw(ask: Ask) -> Drawn:
        ids = sample_cohort(ask.seed, ask.round, ask.num_clients, numbers(ask.num_clients, ask.cohort_size).most_asked)
        slowness = spread * normals(ids, seed) + jitter * normals(ids, seed, ask.seed, ask.round + 1)
        steps = np.asarray(ask.steps(ask.sizes(ids)), float)
        # Compared by logarithms, which no spread is too large for.
        seconds = np.where(steps > 0, slowness + np.log(np.maximum(steps, 1.0)), -np.inf)
        lost = np.ones(len(ids), bool)
        lost[np.argsort(seconds, kind="stable")[: ask.cohort_size]] = False
        return Drawn(ids.astype(np.int64), lost)

    return Participation(draw, numbers)


def _numbers(factor: float, num_clients: int, cohort_size: int) -> Numbers:
    # As the decimal that was written: 1.1 * 10 is 11, and not 11.000000000000002.
    asked = min(num_clients, math.ceil(fractions.Fraction(str(factor)) * cohort_size))
    if asked == cohort_size:
        raise UserError(
            f"config.participation: all {num_clients} clients are waited for, so nobody is left to ask besides; lower "
            "cohort_size, or use --config.participation.name=uniform"
        )
    return Numbers(asked, asked, cohort_size, cohort_size)


def _mixed(x: np.ndarray) -> np.ndarray:
    """uint64: a bijection in which every bit depends on every bit (the finalizer of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))


def normals(ids: np.ndarray, *address: int) -> np.ndarray:
    """float64 `[n]`: a standard normal number of each client, a function of its id and the address alone."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.zeros(1, np.uint64)
    for part in address:
        state = _mixed(state + golden + np.uint64(part))
    first = _mixed(state + golden * (2 * np.asarray(ids, np.uint64) + np.uint64(1)))
    second = _mixed(first + golden)
    # 53 bits each, the first above 0; Box and Muller 1958.
    u, v = ((x >> np.uint64(11)).astype(float) * 2.0**-53 for x in (first, second))
    return np.asarray(np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v))


EXAMPLES = ({}, {"factor": 2.0, "spread": 1.0, "jitter": 0.0})
