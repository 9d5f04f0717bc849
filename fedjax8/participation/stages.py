"""Stages: the fastest clients first, twice as many when a stage is over (FLANP, Reisizadeh et al., arXiv 2012.14453).

    clients by their seconds, T_1 <= ... <= T_N;     n <- n_0
    a stage has the n fastest;     when it is over     n <- min(2 n, M)

M is `cohort_size`; it is the number of clients in FLANP, whose last stage has everyone. Stages start from the model
that the one before has reached. A stage of FLANP is over when the model is as exact as the data of its clients allow,
||grad L_n||^2 <= 2 mu c / (n s), of which mu and c are not known. Here, by a rule without these constants (ours), in
which that bound falls as 1 / n too:

    stage n_0  has `rounds` rounds, the last of which changes the model by g = ||x_new - x_old||^2
    stage n    is over when the change of a round is at most g n_0 / n

Or stages have given numbers of rounds, `lengths`. FLANP runs any algorithm; the paper analyzes `fedgate`.

Seconds are those of the system model in the round, with its jitter; of a run without a clock, local steps. Rounds
without a usable update are in no stage's count.

Law: `unknown`. By the rule, who takes part depends on the clients' rows: no privacy is accounted for beside it, and a
call has one round. The stage is part of the ledger, so that a resumed run is in the same one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax8.errors import UserError
from fedjax8.given import checked
from fedjax8.participation.base import Ask, Drawn, Memory, Numbers, Participation, all_kept

CLIENTS, DONE, SCALE = "clients", "rounds", "scale"
"""Entries of the memory: n, rounds done in stage n_0, and g once that is over."""


@checked
def stages(first: int = 2, rounds: int = 10, *, lengths: Sequence[int] = ()) -> Participation:
    """The participation of the fastest, in stages.

    Args:
      first: n_0, clients of the first stage, at most `cohort_size` (2 in the paper's experiments).
      rounds: of the first stage.
      lengths: rounds of each stage but the last, in place of `rounds` and the rule.

    Raises:
      ValueError: numbers below 1.
    """
    if first < 1 or rounds < 1 or any(length < 1 for length in lengths):
        raise ValueError(f"first, rounds and lengths must be at least 1; got {first}, {rounds} and {tuple(lengths)}")
    ends = np.cumsum(lengths)

    def draw(ask: Ask) -> Drawn:
        given = first << int(np.searchsorted(ends, ask.round, side="right"))
        count = given if lengths else ask.memory.get(CLIENTS, first)
        everyone = np.arange(ask.num_clients)
        fastest = np.argsort(ask.seconds(everyone), kind="stable")[: min(count, ask.cohort_size)]
        return all_kept(np.sort(fastest))

    numbers = functools.partial(_numbers, first)
    if lengths:
        return Participation(draw, numbers, reads_time=True)
    return Participation(
        draw, numbers, reads_time=True, reads_state=True, remember=functools.partial(_remember, first, rounds)
    )


def _remember(first: int, rounds: int, memory: Memory, line: Mapping[str, Any]) -> Memory:
    """The memory after a round."""
    if not line["clients"] or line.get("rejected"):
        return memory
    count, moved = memory.get(CLIENTS, first), line["squared_update"]
    if SCALE not in memory:
        done = memory.get(DONE, 0) + 1
        return {CLIENTS: count, DONE: done} if done < rounds else {CLIENTS: 2 * count, SCALE: moved}
    return {**memory, CLIENTS: 2 * count} if moved <= memory[SCALE] * first / count else memory


def _numbers(first: int, num_clients: int, cohort_size: int) -> Numbers:
    if first > cohort_size:
        raise UserError(
            f"config.participation: the first stage has {first} clients, more than the last, cohort_size "
            f"{cohort_size}; lower first"
        )
    return Numbers(first, cohort_size, first, cohort_size)


EXAMPLES = ({}, {"first": 1, "rounds": 2}, {"first": 1, "lengths": (2, 1)})
