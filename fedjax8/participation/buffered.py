"""Asynchronous rounds with a buffer: FedBuff (Nguyen et al. 2022, arXiv 2106.06639, algorithm 1).

    M clients are on their way at any time; one that arrives is replaced by another
    as the buffer has K updates:    x <- x + eta_s (1 / sum_i w_i) sum_i w_i s(age_i) D_i

D_i is the update of client i, age_i the number of server steps since it received its model, w_i its weight (`examples`
or `uniform`, the paper's), K the run's `cohort_size`. A round is a server step. When clients arrive is planned on the
host from the system model and the sizes of messages, so that a run is a function of its seed; the compiled round keeps
the last models as they were sent, and gives each client the one that it started from. An update older than those is
dropped, and its bytes are counted (`stale`, `wasted_bytes`).

The fast arrive more often than the slow; nothing corrects that. Law: `unknown`.

With `fedavg(payload="params")` the change of a client is that from the server's present model to the client's, as in
FedAsync (`asynchronous`); with `payload="update"` it is the client's own, as in the paper.
"""

import functools
import math
from collections.abc import Callable

import numpy as np

from fedjax8 import staleness as staleness_of
from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.participation._arrivals import kept_arrivals
from fedjax8.participation.base import Ask, Drawn, Numbers, Participation, exactly

LARGEST_CONCURRENCY = 10**6


@checked
def buffered(
    concurrency: int = 100,
    *,
    staleness: str = "polynomial",
    exponent: float = 0.5,
    threshold: float = 10.0,
    versions: int = 20,
) -> Participation:
    """The participation of clients as they arrive.

    Args:
      concurrency: M, clients on their way at any time, at least `cohort_size`.
      staleness: s, the factor by age: `constant`, `polynomial` or `hinge`; see `fedjax8.staleness`.
      exponent, threshold: its settings, those that it takes: the hinge's slope is `exponent`, its start `threshold`.
      versions: models that are kept, so that ages from 0 to `versions - 1` are used. Each costs every device the
        memory of a model.

    Raises:
      ValueError: a setting out of range.
    """
    if not 1 <= concurrency <= LARGEST_CONCURRENCY:
        raise ValueError(f"concurrency must be from 1 to {LARGEST_CONCURRENCY}; got {concurrency}")
    if versions < 1:
        raise ValueError(f"versions must be at least 1; got {versions}")
    factor, arrivals = _factor(staleness, exponent, threshold), kept_arrivals(concurrency)

    def draw(ask: Ask) -> Drawn:
        step = arrivals(ask).step(ask.round)
        return Drawn(step.ids, step.ids < 0, step.ages, step.started, step.schedule)

    return Participation(
        draw, functools.partial(_numbers, concurrency), versions=versions, factor=factor, reads_time=True
    )


def _factor(name: str, exponent: float, threshold: float) -> Callable[[np.ndarray], np.ndarray]:
    """Ages to factors, by the name of a staleness and its settings."""
    for setting, value in (("exponent", exponent), ("threshold", threshold)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{setting} must be a number from 0 up; got {value}")
    made = {
        "constant": staleness_of.constant(),
        "polynomial": staleness_of.polynomial(exponent),
        "hinge": staleness_of.hinge(exponent, threshold),
    }
    if name not in made:
        raise ValueError(f"staleness must be one of {', '.join(made)}; got {name!r}")
    return made[name]


def _numbers(concurrency: int, num_clients: int, cohort_size: int) -> Numbers:
    if concurrency < cohort_size:
        raise UserError(
            f"config.participation.concurrency is {concurrency}, but the buffer has cohort_size={cohort_size} clients, "
            "of which no more arrive than are on their way; raise concurrency or lower cohort_size"
        )
    if concurrency > num_clients:
        raise UserError(
            f"config.participation.concurrency is {concurrency}, but there are {num_clients} clients; lower it"
        )
    return exactly(num_clients, cohort_size)


EXAMPLES = ({"concurrency": 4}, {"concurrency": 3, "staleness": "hinge", "threshold": 1.0})
