"""More are asked than are waited for: who is done first, by a model of time, and what it costs."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.dropouts import with_dropout
from fedjax8.dropouts.base import Dropout
from fedjax8.dropouts.deadline import deadline
from fedjax8.executors.pmap import pmap
from fedjax8.participation import Ask, overselect, sample_cohort
from fedjax8.systems import same

STEPS = np.array([5, 1, 9, 3, 7, 2, 8, 4])


def ask(**changes):
    usual = Ask(0, 0, 8, 4, lambda ids: 10 * STEPS[ids], lambda sizes: sizes // 10, None, lambda ids: STEPS[ids])
    return usual._replace(**changes)


def test_the_first_to_be_done_are_waited_for():
    """Devices of one speed: those with the fewest steps."""
    for r in range(10):
        ids, lost = overselect(1.5).draw(ask(round=r))[:2]
        assert ids.tolist() == sample_cohort(0, r, 8, 6).tolist()
        assert ids[~lost].tolist() == sorted(sorted(ids, key=lambda i: STEPS[i])[:4])


def test_a_clock_decides_who_is_first():
    slowest_first = ask(seconds=lambda ids: -STEPS[ids])
    ids, lost = overselect(2.0).draw(slowest_first)[:2]
    assert ids[~lost].tolist() == sorted(sorted(ids, key=lambda i: -STEPS[i])[:4])


def test_how_many_are_asked_is_the_decimal_that_was_written():
    asked = lambda factor, cohort, clients=100: overselect(factor).numbers(clients, cohort).most_asked
    assert (asked(1.1, 10), asked(1.3, 10), asked(1.3, 1), asked(1.05, 10), asked(1.3, 90)) == (11, 13, 2, 11, 100)
    for bad in ({"factor": 1.0}, {"factor": float("nan")}, {"factor": float("inf")}):
        with pytest.raises(ValueError, match="must"):
            overselect(**bad)


B = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
MADE = overselect(1.5)


def rounds(toys, make, count, executor=None, feed_mode="auto", system=None):
    """Eight clients whose local steps, an epoch of batches of one, are STEPS; six asked, four waited for."""
    sim = toys.build(
        make, toys.clients([1.0] * 8, B, STEPS), cohort_size=4, epochs=1, participation=MADE, executor=executor,
        feed_mode=feed_mode, system=system,
    )  # fmt: skip
    state, lines = sim.init(), []
    while state.round < count:
        state, more = sim.run_rounds(state, count - state.round)
        lines += more
    return sim, state, lines


def by_hand(count):
    """x after each round: client i moves to b_i - (b_i - x) 0.9^steps, and the mean is over those waited for."""
    x, xs = 0.0, []
    for r in range(count):
        ids, lost = MADE.draw(ask(round=r))[:2]
        x = np.mean([B[i] - (B[i] - x) * 0.9 ** STEPS[i] for i in ids[~lost]])
        xs.append(x)
    return xs


@pytest.mark.parametrize(("executor", "feed_mode"), [(None, "streamed"), (pmap(1, 2), "resident")])
def test_those_not_waited_for_cost_bytes_down_and_nothing_else(toys, executor, feed_mode):
    make = functools.partial(fedavg, weighting="uniform")
    sim, state, lines = rounds(toys, make, 4, executor, feed_mode)
    for r, line in enumerate(lines):
        assert (line["cohort"], line["clients"], line["excluded"]) == (6, 4, 0)
        assert (line["downlink_bytes"], line["uplink_bytes"]) == (4 * 6 * (r + 1), 4 * 4 * (r + 1))
    assert float(sim.variables(state).params["x"]) == pytest.approx(by_hand(4)[-1], rel=1e-4)


def test_those_not_waited_for_remember_what_they_did(toys):
    _, state, _ = rounds(toys, functools.partial(scaffold, learning_rate=toys.LEARNING_RATE), 1)
    own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
    ids, lost = MADE.draw(ask())[:2]
    assert {i for i in range(8) if own[i] != 0} == set(ids[~lost].tolist())


def test_dropouts_lose_some_of_those_who_are_waited_for(toys):
    """Round 1, of which client `one` is lost besides: it counts as dropped, those not waited for do not."""
    ids, lost = MADE.draw(ask())[:2]
    one, gone = int(ids[~lost][0]), int(ids[lost][0])
    losing = Dropout(lambda key, ids: jnp.isin(ids, jnp.array([one, gone])))
    make = lambda local: with_dropout(fedavg(local, weighting="uniform"), losing)
    sim, state, (line,) = rounds(toys, make, 1)
    left = [i for i in ids[~lost] if i != one]
    assert (line["cohort"], line["clients"], line["dropped"]) == (6, 3, 1)
    assert (line["downlink_bytes"], line["uplink_bytes"]) == (24, 12)
    x = np.mean([B[i] * (1 - 0.9 ** STEPS[i]) for i in left])
    assert float(sim.variables(state).params["x"]) == pytest.approx(x, rel=1e-5)


def test_a_deadline_is_for_those_who_are_waited_for(toys):
    """Four bytes take four seconds down and up, a step a second: late after 10.5 are those with three steps or more."""
    late = lambda local: with_dropout(fedavg(local, weighting="uniform"), deadline(10.5))
    links = same(1.0, down_bandwidth=1.0, up_bandwidth=1.0)
    _, _, (line,) = rounds(toys, late, 1, system=links)
    ids, lost = MADE.draw(ask())[:2]
    slow = [i for i in ids[~lost] if STEPS[i] > 2]
    assert (line["dropped"], line["clients"]) == (len(slow), 4 - len(slow))
    assert 0 < len(slow) < 4
