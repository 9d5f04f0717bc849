#!/usr/bin/env python3
"""Hours of a published table by the clock, from sizes and times alone: Streaming DiLoCo (arXiv 2501.18512), table 1.

    python scripts/published_times.py

A model of 1 B parameters at 1 Gbit/s: data-parallel training takes 109, 438 and 1097 hours for 25, 100 and 250 B
tokens, theirs 0.88, 3.5 and 8.75; without any limit of the link both take 0.67, 2.7 and 6.75 (these three recalled, not
read again). The table has no sizes of steps and messages. Those below are inferred, and the same for all six numbers:
2^20 tokens a step, 16-bit gradients; 100 steps between synchronizations, 8 parts in 4 bits, one step of overlap; two
members of a ring, each of which sends 2 (n - 1) / n = 1 times what is averaged, and receives as much at the same time.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax8.exchange.clock import Clock, Timing
from fedjax8.executors.loop import loop
from fedjax8.systems import ServerLink, Speeds
from fedjax8.types import Channel, Cohort

PARAMETERS, TOKENS_A_STEP, LINK = 1.02e9, 2**20, 1e9 / 8
PARTS, PERIOD = 8, 100


class Hours(NamedTuple):
    """Hours of a number of tokens."""

    unlimited: float
    data_parallel: float
    streaming: float


PUBLISHED = {25e9: Hours(0.67, 109, 0.88), 100e9: Hours(2.7, 438, 3.5), 250e9: Hours(6.75, 1097, 8.75)}


def by_the_clock(tokens: float) -> Hours:
    """The hours of `PUBLISHED`, of which the first is given."""
    unlimited, steps = PUBLISHED[tokens].unlimited, tokens / TOKENS_A_STEP
    step_seconds = unlimited * 3600 / steps
    of_step = _seconds_of(_exchanged(_clock_of(step_seconds), int(2 * PARAMETERS), 1))

    clock, of_part, between = _clock_of(step_seconds), int(PARAMETERS / 2 / PARTS), PERIOD // PARTS
    for number in range(PARTS):  # a part is under way while the next step is taken
        own_steps = between - 1 + (0 if number else PERIOD - PARTS * between)
        clock = _exchanged(clock, of_part, own_steps, background=True)
        clock = clock.received(_members(), {}, background=True).worked(_members(), 1).wait(_members())
    of_cycle = _seconds_of(clock)
    return Hours(unlimited, steps * of_step / 3600, steps / PERIOD * of_cycle / 3600)


def _clock_of(step_seconds: float) -> Clock:
    one = jnp.ones(2, jnp.float32)
    speeds = Speeds(*(np.asarray(x) for x in (step_seconds * one, LINK * one, LINK * one, 0 * one)))
    return Clock.begin(speeds, Timing(ServerLink(), lambda sizes: sizes), loop(), {})


def _members() -> Cohort:
    ids = jnp.arange(2, dtype=jnp.int32)
    return Cohort(ids, jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32), jnp.ones(2, bool), {})


def _exchanged(clock: Clock, num_bytes: int, steps: int, background: bool = False) -> Clock:
    """The clock after local steps and a message of each member."""
    cohort, sending, clock = clock.trained(_members(), steps, num_bytes)
    messages = clock.kept({"part": jnp.ones(2, jnp.uint32)}, cohort.valid)
    return clock.sent(cohort, sending, {Channel("up", "part", num_bytes, 0): num_bytes}, messages, background)


def _seconds_of(clock: Clock) -> float:
    return float(clock.elapsed_in(_members()).seconds)


def main() -> None:
    """Prints the table of docs/time.md."""
    print("| tokens | data-parallel, published | by the clock | Streaming DiLoCo, published | by the clock |")
    print("|---|---|---|---|---|")
    for tokens, said in PUBLISHED.items():
        found = by_the_clock(tokens)
        print(
            f"| {tokens / 1e9:.0f} B | {said.data_parallel:g} | {found.data_parallel:.1f} | {said.streaming:g} "
            f"| {found.streaming:.3f} |"
        )


if __name__ == "__main__":
    main()
