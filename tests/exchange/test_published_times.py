"""Hours of a published table, from sizes and times alone: Streaming DiLoCo (arXiv 2501.18512), table 1.

A model of 1 B parameters at 1 Gbit/s: data-parallel training takes 109, 438 and 1097 hours for 25, 100 and 250 B
tokens, theirs 0.88, 3.5 and 8.75; without any limit of the link both take 0.67, 2.7 and 6.75 (these three recalled, not
read again). The table has no sizes of steps and messages. Those below are inferred, and the same for all six numbers:
2^20 tokens a step, 16-bit gradients; 100 steps between synchronizations, 8 parts in 4 bits, one step of overlap; two
members of a ring, each of which sends 2 (n - 1) / n = 1 times what is averaged, and receives as much at the same time.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.exchange.clock import Clock, Timing
from fedjax8.executors.loop import loop
from fedjax8.systems import ServerLink, Speeds
from fedjax8.types import Channel, Cohort

PARAMETERS, TOKENS_A_STEP, LINK = 1.02e9, 2**20, 1e9 / 8
HOURS = {25e9: (0.67, 109, 0.88), 100e9: (2.7, 438, 3.5), 250e9: (6.75, 1097, 8.75)}


def clock_of(step_seconds):
    one = jnp.ones(2, jnp.float32)
    speeds = Speeds(step_seconds * one, LINK * one, LINK * one, 0 * one)
    return Clock.begin(speeds, Timing(ServerLink(), lambda sizes: sizes), loop(), {})


def members():
    ids = np.arange(2, dtype=np.int32)
    return Cohort(jnp.asarray(ids), jnp.zeros(2, jnp.int32), jnp.ones(2, jnp.int32), jnp.ones(2, bool), {})


def exchanged(clock, num_bytes, steps, background=False):
    """The clock after local steps and a message of each member."""
    cohort, sending, clock = clock.trained(members(), steps, num_bytes)
    messages = clock.kept({"part": jnp.ones(2, jnp.uint32)}, cohort.valid)
    return clock.sent(cohort, sending, {Channel("up", "part", num_bytes, 0): num_bytes}, messages, background)


def seconds_of(clock):
    return float(clock.elapsed_in(members()).seconds)


@pytest.mark.parametrize("tokens", HOURS)
def test_hours_at_a_gigabit_are_those_published(tokens):
    unlimited, data_parallel, streaming = HOURS[tokens]
    steps = tokens / TOKENS_A_STEP
    step_seconds = unlimited * 3600 / steps
    of_step = seconds_of(exchanged(clock_of(step_seconds), int(2 * PARAMETERS), 1))
    assert steps * of_step / 3600 == pytest.approx(data_parallel, rel=0.02)

    parts, period = 8, 100
    clock, of_part, between = clock_of(step_seconds), int(PARAMETERS / 2 / parts), period // parts
    for number in range(parts):  # a part is under way while the next step is taken
        own_steps = between - 1 + (0 if number else period - parts * between)
        clock = exchanged(clock, of_part, own_steps, background=True)
        clock = clock.received(members(), {}, background=True).worked(members(), 1).wait(members())
    of_cycle = seconds_of(clock)
    assert steps / period * of_cycle / 3600 == pytest.approx(streaming, rel=0.02)
