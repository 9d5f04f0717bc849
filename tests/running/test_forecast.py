"""What a forecast says of a run is what the run then does."""

import io
import re

import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

from fedjax8 import dropouts
from fedjax8.algorithms import fda, fda_opt, fedavg, fedcode, fedlora, hetlora, rolora
from fedjax8.build import build
from fedjax8.config import base_config, component
from fedjax8.data.batches import batch_plan
from fedjax8.local import local_training
from fedjax8.models.logistic import logistic
from fedjax8.participation import sample_cohort
from fedjax8.running.forecast import Leaf, Range, Traffic, forecast, leaves_of, traffic_of
from fedjax8.running.forecast_tables import show
from fedjax8.running.schedule import Schedule
from fedjax8.running.timeline import Simulated
from fedjax8.types import Channel, Variables

ROUNDS, COHORT, BATCH, EPOCHS, HIDDEN = 3, 4, 10, 2, 8
KERNELS, BIASES, CLIPS = 64 * HIDDEN + HIDDEN * 10, HIDDEN + 10, 4


@pytest.fixture(scope="module")
def experiment():
    """Clients of different size on an 8-bit network with two layers."""
    config = base_config()
    config.rounds, config.cohort_size, config.model.hidden = ROUNDS, COHORT, (HIDDEN,)
    config.partition = component("quantity_skew")
    config.executor = component("auto", num_devices=2, chunk=2)
    return build(config)


def forecast_of(experiment, measured):
    return forecast(
        experiment.simulation,
        Schedule(ROUNDS, 2, 1),
        experiment.dataset.test,
        measured=measured,
    )


@pytest.fixture(scope="module")
def measured(experiment):
    return forecast_of(experiment, measured=True)


@pytest.fixture(scope="module")
def fast(experiment):
    return forecast_of(experiment, measured=False)


def test_messages_are_those_of_the_run(experiment, measured, fast):
    state, done = experiment.simulation.init(), 0
    while done < ROUNDS:
        state, _ = experiment.simulation.run_rounds(state, ROUNDS - done)
        done = state.round
    for found in (measured, fast):
        assert found.run_messages == state.ledger
        assert found.round_messages.uplink_bytes == COHORT * (KERNELS + 4 * BIASES + 4 * CLIPS)


def ways_of(make, settings, channels, steps=6, clients=4):
    local = local_training(logistic(2), optax.sgd(0.1), batch_plan(1, steps=1))
    return traffic_of(make(local, **settings).ways(channels, steps, clients))


def test_the_bytes_of_a_client_are_a_range_where_messages_are_alternatives_or_repeat():
    """By hand, from sizes of the messages: alternatives are never added, and repeats are counted."""
    model, book = (Channel(d, "model", 100, 400) for d in ("down", "up")), Channel("up", "codebook", 8, 8)
    down, up = model
    small = Channel("down", "codebook", 8, 8)
    found = ways_of(fedcode, {"clusters": 2}, [down, small, up, book])
    assert (found.up, found.down) == ((8, 100), (8, 100))
    assert set(found.times.values()) == {(0, 1)}

    told, more = Channel("up", "monitor", 12, 12), Channel("down", "decision", 1, 1)
    found = ways_of(fda_opt, {"max_units": 7}, [down, told, more, up])
    assert (found.up, found.down) == ((100 + 12, 100 + 7 * 12), (100 + 1, 100 + 7))
    start = Channel("down", "start", 50, 50)
    found = ways_of(fda, {"theta": 1.0, "check_every": 4}, [start, told, more, up, down])  # 6 steps: 1 or 2 checks
    assert (found.up, found.down) == ((12, 2 * 112), (1, 50 + 2 * 101))

    parts = [Channel("up", "model", size, 0, f"blocks:{i}") for i, size in enumerate((20, 30))]
    ranks = [Channel("down", f"rank{r}", size, size) for r, size in ((1, 20), (3, 50))]
    found = ways_of(hetlora, {"ranks": (3, 1)}, [down, *ranks, up, *parts])
    assert (found.up, found.down) == ((120, 150), (120, 150))
    assert [found.times[part] for part in parts] == [(1, 1), (0, 1)]

    turns = [Channel(d, name, size, size) for d in ("down", "up") for name, size in (("a", 3), ("b", 5))]
    found = ways_of(rolora, {}, turns)
    assert (found.up, found.down) == ((3, 5), (3, 5))
    found = ways_of(fedlora, {"merge": "residual"}, [down, up, Channel("down", "pairs", 9, 9)])
    assert (found.up, found.down) == ((100, 100), (100, 100 + 3 * 9))

    wrapped = lambda local: dropouts.with_dropout(fedavg(local), dropouts.random(0.5))
    found = ways_of(wrapped, {}, [down, up, Channel("up", "model", 7, 0, "params:0")])
    assert (found.up, found.down) == ((0, 107), (100, 100))
    assert not found.fixed and ways_of(fedavg, {}, [down, up]).fixed


def shown(found):
    out = io.StringIO()
    show(found, "what runs", Console(file=out))
    return " ".join(out.getvalue().split())


def test_simulated_time_is_told_with_what_limits_it(fast):
    """Without a clock nothing is."""
    assert "simulated" not in shown(fast)
    limits = {"uplink": 0.71, "the server's link": 0.2, "local steps": 0.086, "latency": 0.004}
    told = shown(fast._replace(simulated=Simulated(12.0, 20.0, 204.0, 7560.0, limits, False)))
    assert "clock simulated: a round 12 s to 3.4 min, median 20 s; the run about 2.1 h, limited by " in told
    assert "by the slowest client's uplink 71%, the server's link 20%, local steps 9% by the most bytes" in told
    even = shown(fast._replace(simulated=Simulated(12.0, 12.0, 12.0, 36.0, {"the deadline": 1.0}, True)))
    assert "a round 12 s; the run 36 s, limited by the deadline 100%" in even


def test_a_config_with_a_clock_and_a_deadline_has_its_simulated_time():
    """Every device takes 6 steps of 2 s, and the deadline is at 5 s; or at 1000 s, which nobody needs."""
    config = base_config()
    config.system = component("same", step_seconds=2.0)
    found = []
    for seconds in (5.0, 1000.0):
        config.dropout = component("deadline", seconds=seconds)
        made = build(config)
        assert made.simulation.algorithm.deadline == seconds
        schedule = Schedule(ROUNDS, 2, 1)
        found.append(forecast(made.simulation, schedule, made.dataset.test, measured=False))
    late, in_time = (x.simulated for x in found)
    assert (late.run, late.limits) == (15.0, {"the deadline": 1.0})
    assert in_time.limits["local steps"] > 0.9 and in_time.least > 12.0


def test_a_range_is_shown_as_one(fast):
    out = io.StringIO()
    channel = Channel("up", "model", 1000, 4000)
    traffic = Traffic({channel: Range(0, 2)}, Range(0, 2000), Range(5, 5))
    show(fast._replace(traffic=traffic, round_messages=None, run_messages=None), "what runs", Console(file=out))
    assert "of a client in a round up 0 to 2,000, down 5; 3 rounds up 0 to 24,000, down 60" in out.getvalue()
    assert "0 to 8,000" in out.getvalue() and "saving" not in out.getvalue()


def test_steps_are_those_of_the_clients_that_are_drawn(experiment, measured, fast):
    sizes = experiment.simulation.data.sizes
    steps = [EPOCHS * -(-int(size) // BATCH) for size in sizes]
    drawn = [client for number in range(ROUNDS) for client in sample_cohort(0, number, len(sizes), COHORT)]
    assert len(set(steps)) > 1
    for found in (measured, fast):
        assert (found.steps.least, found.steps.most) == (min(steps), max(steps))
        assert (found.steps.run, found.steps.exact) == (sum(steps[client] for client in drawn), True)
        assert found.steps.median == sorted(steps)[24] / 2 + sorted(steps)[25] / 2


def test_arrays_are_listed_with_what_becomes_of_them(measured):
    by_kind = {kind: [x for x in measured.leaves if x.kind == kind] for kind in ("trained", "clip")}
    assert sum(x.size for x in by_kind["trained"]) == KERNELS + BIASES
    assert [x.shape for x in by_kind["clip"]] == [()] * CLIPS
    assert Leaf("Dense_0/kernel", (64, HIDDEN), 64 * HIDDEN, "trained") in measured.leaves
    variables = Variables({"kernel": jnp.ones(2)}, {"mean": jnp.ones(3)}, {"backbone": jnp.ones((4, 5))})
    assert leaves_of(variables) == [
        Leaf("kernel", (2,), 2, "trained"), Leaf("backbone", (4, 5), 20, "frozen"), Leaf("mean", (3,), 3, "state"),
    ]  # fmt: skip


def test_memory_is_what_a_device_is_given_and_what_the_program_needs(experiment, measured, fast):
    columns = (*experiment.dataset.train.values(), *experiment.dataset.test.values())
    rows = sum(column.nbytes for column in columns) + 4 * len(experiment.dataset.train["y"])
    starts_and_sizes = measured.memory.rows - rows
    assert 0 < starts_and_sizes <= 64 * 2 * 4 * COHORT
    assert measured.memory.model == 4 * (KERNELS + BIASES + CLIPS)
    # Two clients at once, each with its own parameters and their gradient, both rounded to 8 bits and not.
    assert measured.chunk == 2
    assert measured.memory.working > 2 * 2 * 4 * KERNELS
    assert fast.memory.working is None
    assert fast.memory._replace(working=measured.memory.working) == measured.memory


def test_time_is_that_of_rounds_and_evaluations_or_of_products_alone(measured, fast):
    seconds = measured.seconds
    assert min(seconds.round, seconds.evaluation, seconds.start) > 0
    assert seconds.run == pytest.approx(seconds.start + ROUNDS * seconds.round + 2 * seconds.evaluation)
    assert fast.seconds.round > 0
    assert fast.seconds.run == pytest.approx(ROUNDS * fast.seconds.round)


def test_in_a_pipe_a_forecast_is_plain_and_whole_and_on_a_terminal_it_fits(measured, fast):
    plain, terminal = io.StringIO(), io.StringIO()
    long = measured._replace(leaves=(Leaf("block/" * 40 + "kernel", (3, 4), 12, "frozen"),))
    show(long, "what runs", Console(file=plain, width=20))
    show(fast, "what runs", Console(file=terminal, width=60, force_terminal=True))
    lines = plain.getvalue().splitlines()
    assert lines[0] == "what runs"
    assert "block/" * 40 + "kernel  3 x 4       12  frozen" in plain.getvalue()
    assert "\x1b" not in plain.getvalue() and "\x1b" in terminal.getvalue()
    up = measured.run_messages.uplink_bytes
    assert f"3 rounds up {up:,}, down {up:,}" in plain.getvalue()
    assert "measured: " in plain.getvalue() and "estimated: " in terminal.getvalue()
    shown = re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue())
    assert max(map(len, shown.splitlines())) <= 60


def test_nothing_in_a_forecast_depends_on_having_measured_but_time_and_memory(measured, fast):
    same = [name for name in measured._fields if getattr(measured, name) == getattr(fast, name)]
    assert set(measured._fields) - set(same) == {"memory", "seconds", "measured"}
