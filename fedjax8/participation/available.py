"""Clients that are there: `cohort_size` of those who are available as the round begins, without replacement.

    t <- t + 60 s   until at least `least` clients are available at t
    ask  min(M, number of them) clients, uniform over those

When clients are there is the system model's matter (the column `available` of `trace`), t the simulated time of the run
so far. The time that the server waits belongs to the round. Who leaves during a round is not seen: availability is
asked at its beginning alone.

Clients that are there more often take part more often; nothing corrects that. Who takes part depends on the time that
rounds have taken, so that a call has one round. Law: `unknown`. Every look asks all registered clients, on the host.
"""

import functools

import numpy as np

from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.participation.base import Ask, Drawn, Numbers, Participation, all_kept, generator

REST = 60.0
"""Seconds until a server looks again, where too few clients are there."""
LOOKS = 100_000
"""Times that it looks before it gives up."""


@checked
def available(least: int = 1) -> Participation:
    """The participation of clients that are there.

    Args:
      least: clients that a round needs, at most `cohort_size`; the server waits for as many.

    Raises:
      ValueError: a number below 1.
      UserError: in a round, if too few clients are ever there.
    """
    if least < 1:
        raise ValueError(f"least must be at least 1; got {least}")
    return Participation(
        functools.partial(_draw, least),
        functools.partial(_numbers, least),
        reads_state=True,
        reads_time=True,
        reads_available=True,
    )


def _draw(least: int, ask: Ask) -> Drawn:
    everyone = np.arange(ask.num_clients)
    for look in range(LOOKS):
        there = np.flatnonzero(ask.available(ask.clock + look * REST, everyone))
        if len(there) >= least:
            count = min(ask.cohort_size, len(there))
            drawn = generator(ask.seed, ask.round).choice(there, size=count, replace=False, shuffle=False)
            return all_kept(np.sort(drawn))._replace(waited=look * REST)
    raise UserError(
        f"round {ask.round + 1}: at no moment of the {LOOKS * REST:,.0f} s after {ask.clock:,.0f} s {least} clients "
        "are available; see the intervals of config.system, or lower config.participation.least"
    )


def _numbers(least: int, num_clients: int, cohort_size: int) -> Numbers:
    if least > cohort_size:
        raise UserError(
            f"config.participation.least is {least}, but cohort_size is {cohort_size}; a round needs no more clients "
            "than it asks: lower least"
        )
    return Numbers(least, cohort_size, least, cohort_size)


EXAMPLES = ({}, {"least": 2})
