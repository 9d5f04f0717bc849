"""More are asked than are waited for: who is done first, by a model of time, and what it costs."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.dropouts import with_dropout
from fedjax8.dropouts.base import Dropout
from fedjax8.dropouts.deadline import deadline
from fedjax8.executors.pmap import pmap
from fedjax8.participation import Ask, overselect, sample_cohort
from fedjax8.participation.overselect import normals

STEPS = np.array([5, 1, 9, 3, 7, 2, 8, 4])


def ask(**changes):
    usual = Ask(0, 0, 8, 4, lambda ids: 10 * STEPS[ids], lambda sizes: sizes // 10, None)
    return usual._replace(**changes)


def test_the_first_to_be_done_are_waited_for():
    """Devices of one speed: those with the fewest steps."""
    for r in range(10):
        ids, lost = overselect(1.5, spread=0.0, jitter=0.0).draw(ask(round=r))
        assert ids.tolist() == sample_cohort(0, r, 8, 6).tolist()
        assert ids[~lost].tolist() == sorted(sorted(ids, key=lambda i: STEPS[i])[:4])


def test_a_client_without_rows_is_done_at_once_however_slow_its_device():
    """At this spread seconds are beyond what a float can hold."""
    empty = ask(sizes=lambda ids: np.where(ids == 5, 0, 10), steps=lambda sizes: sizes // 10, cohort_size=1)
    for r in range(3):
        ids, lost = overselect(8.0, spread=1e6).draw(empty._replace(round=r))
        assert ids[~lost].tolist() == [5]


def test_slow_devices_stay_slow_and_runs_with_other_seeds_have_them_too():
    alike = ask(sizes=lambda ids: np.full(len(ids), 10))
    made = overselect(2.0, spread=1.0, jitter=0.0)
    waited = [
        tuple(d.ids[~d.lost]) for d in (made.draw(alike._replace(round=r, seed=s)) for r in range(5) for s in (0, 9))
    ]
    fastest = tuple(sorted(np.argsort(np.exp(normals(np.arange(8), 0)), kind="stable")[:4].tolist()))
    assert set(waited) == {fastest}
    often = [
        tuple(d.ids[~d.lost]) for d in (overselect(2.0, jitter=1.0).draw(alike._replace(round=r)) for r in range(20))
    ]
    assert len(set(often)) > 5


def test_normal_numbers_are_normal_and_belong_to_the_client_and_the_address():
    ids = np.arange(20_000)
    x, y = normals(ids, 0), normals(ids, 0, 1, 5)
    assert stats.kstest(x, "norm").pvalue > 1e-3 and stats.kstest(y, "norm").pvalue > 1e-3
    for other in (y, normals(ids, 1), normals(ids, 0, 1, 6), normals(ids, 0, 2, 5), np.roll(x, 1)):
        assert abs(np.corrcoef(x, other)[0, 1]) < 5 / np.sqrt(20_000)
    np.testing.assert_array_equal(normals(ids[::-7], 0), x[::-7])


def test_how_many_are_asked_is_the_decimal_that_was_written():
    asked = lambda factor, cohort, clients=100: overselect(factor).numbers(clients, cohort).most_asked
    assert (asked(1.1, 10), asked(1.3, 10), asked(1.3, 1), asked(1.05, 10), asked(1.3, 90)) == (11, 13, 2, 11, 100)
    for bad in (
        {"factor": 1.0},
        {"factor": float("nan")},
        {"spread": -1.0},
        {"jitter": float("inf")},
        {"seed": -1},
        {"seed": 2**64},
    ):
        with pytest.raises(ValueError, match="must"):
            overselect(**bad)


B = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
MADE = overselect(1.5, spread=0.0, jitter=0.0)


def rounds(toys, make, count, executor=None, feed_mode="auto"):
    """Eight clients whose local steps, an epoch of batches of one, are STEPS; six asked, four waited for."""
    sim = toys.build(
        make, toys.clients([1.0] * 8, B, STEPS), cohort_size=4, epochs=1, participation=MADE, executor=executor,
        feed_mode=feed_mode,
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
        ids, lost = MADE.draw(ask(round=r))
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
    ids, lost = MADE.draw(ask())
    assert {i for i in range(8) if own[i] != 0} == set(ids[~lost].tolist())


def test_dropouts_lose_some_of_those_who_are_waited_for(toys):
    """Round 1, of which client `one` is lost besides: it counts as dropped, those not waited for do not."""
    ids, lost = MADE.draw(ask())
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
    late = lambda local: with_dropout(
        fedavg(local, weighting="uniform"),
        deadline(10.5, 1.0, spread=0.0, down_bandwidth=1.0, up_bandwidth=1.0, plan=local.plan),
    )
    _, _, (line,) = rounds(toys, late, 1)
    ids, lost = MADE.draw(ask())
    slow = [i for i in ids[~lost] if STEPS[i] > 2]
    assert (line["dropped"], line["clients"]) == (len(slow), 4 - len(slow))
    assert 0 < len(slow) < 4
