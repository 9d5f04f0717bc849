"""Poisson cohorts: every client on its own, never more than there are places, and an empty round that is one."""

import functools
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from fedjax8.algorithms.aggregators.krum import krum
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.codecs.error_feedback import error_feedback
from fedjax8.codecs.sign import sign
from fedjax8.errors import UserError
from fedjax8.executors.chunked import chunked
from fedjax8.executors.pmap import pmap
from fedjax8.participation import Ask, Participation, poisson
from fedjax8.participation.poisson import CHANCE, ROUNDS, bound, log_chance_of_more


def cohorts(rounds, num_clients, cohort_size, seed=0):
    nothing = lambda x: x
    draw = poisson().draw
    return [draw(Ask(seed, r, num_clients, cohort_size, nothing, nothing, nothing)).ids for r in range(rounds)]


def test_clients_are_drawn_independently_with_the_same_chance():
    """4000 draws of 12 clients at q = 1/4; five standard errors allowed for each of 12 and of 66 frequencies."""
    draws, n, q = 4000, 12, 0.25
    drawn = np.zeros((draws, n))
    for r, ids in enumerate(cohorts(draws, n, 3)):
        drawn[r, ids] = 1
    error = lambda p: 5 * math.sqrt(p * (1 - p) / draws)
    assert np.abs(drawn.mean(axis=0) - q).max() < error(q)
    pairs = [np.mean(drawn[:, i] * drawn[:, j]) for i, j in itertools.combinations(range(n), 2)]
    # Without replacement 3 of 12 a pair would come with chance 3/12 * 2/11 = 0.0455, 2.6 such bounds away.
    assert np.abs(np.array(pairs) - q * q).max() < error(q * q)
    counts = np.bincount(drawn.sum(axis=1).astype(int), minlength=n + 1)
    expected = draws * stats.binom.pmf(np.arange(n + 1), n, q)
    together = lambda x: np.append(x[:7], x[7:].sum())
    assert stats.chisquare(together(counts), together(expected)).pvalue > 1e-4
    assert abs(drawn.sum(axis=1).mean() - 3) < 5 * math.sqrt(n * q * (1 - q) / draws)


@pytest.mark.parametrize(
    ("clients", "cohort"), [(10, 3), (50, 10), (1000, 10), (10**6, 1), (10**6, 500_000), (10**7, 10**6), (40, 39)]
)
def test_the_bound_is_the_smallest_whose_tail_is_small_enough(clients, cohort):
    found, q = bound(clients, cohort), cohort / clients
    assert stats.binom.sf(found, clients, q) * ROUNDS < CHANCE
    # The geometric series is up to 3 % above the tail.
    assert found == clients or 1.03 * stats.binom.sf(found - 1, clients, q) * ROUNDS > CHANCE
    if found < clients:
        exact = math.log(stats.binom.sf(found, clients, q))
        assert exact - 1e-6 <= log_chance_of_more(clients, cohort, found) < exact + 0.03


def test_a_bound_of_ones_own_must_be_enough(toys):
    data = toys.clients([1.0] * 100, [0.0] * 100)
    enough = bound(100, 5)
    assert toys.build(fedavg, data, cohort_size=5, steps=1, participation=poisson(enough)).places == enough
    assert toys.build(fedavg, data, cohort_size=5, steps=1, participation=poisson(10**6)).places == 100
    with pytest.raises(UserError, match=f"participation.most is {enough - 1}, but .* allowed are {enough} and more"):
        toys.build(fedavg, data, cohort_size=5, steps=1, participation=poisson(enough - 1))


def test_a_round_with_more_clients_than_places_ends_the_run(toys):
    usual = poisson()
    few = Participation(usual.draw, lambda clients, cohort: usual.numbers(clients, cohort)._replace(
        most_asked=3, most_used=3), usual.law)  # fmt: skip
    sim = toys.build(fedavg, toys.clients([1.0] * 9, [0.0] * 9), cohort_size=3, steps=1, participation=few)
    first = next(r for r, ids in enumerate(cohorts(20, 9, 3)) if len(ids) > 3)
    state = sim.init()
    with pytest.raises(UserError, match=f"round {first + 1}: .* no client is left out silently"):
        while state.round <= first:
            state, _ = sim.run_round(state)


B = [1.0, -2.0, 4.0, 8.0, -16.0, 32.0]


@pytest.mark.parametrize("executor", [chunked(4), pmap(1, 2)], ids=["chunked", "pmap"])
def test_rounds_of_any_size_are_what_a_hand_computes(toys, executor):
    """Two of six clients in expectation, some rounds empty; uniform weights, one SGD step each."""
    sim = toys.build(
        functools.partial(fedavg, weighting="uniform"), toys.clients([1.0] * 6, B), cohort_size=2, steps=1,
        executor=executor, participation=poisson(),
    )  # fmt: skip
    drawn, x, messages, rounds = cohorts(24, 6, 2), 0.0, 0, []
    state = sim.init()
    while state.round < 24:
        state, lines = sim.run_rounds(state, 24 - state.round)
        rounds += lines
    assert min(map(len, drawn)) == 0 and max(map(len, drawn)) > 2  # or the test would show little
    for line, ids in zip(rounds, drawn, strict=True):
        x += 0.1 * (np.mean([B[i] for i in ids]) - x) if len(ids) else 0.0
        messages += len(ids)
        assert (line["cohort"], line["clients"], line["excluded"]) == (len(ids), len(ids), 0)
        assert line["uplink_bytes"] == line["downlink_bytes"] == 4 * messages
    assert float(sim.variables(state).params["x"]) == pytest.approx(x, rel=1e-4)


def test_clients_that_remember_are_their_own_whatever_the_cohort(toys):
    """SCAFFOLD: after any rounds of any sizes the server's variate is the mean of the clients' (Karimireddy et al.,
    algorithm 1, line 17), and those who never were there have none."""
    make = functools.partial(scaffold, learning_rate=toys.LEARNING_RATE)
    sim = toys.build(
        make, toys.clients([1.0] * 6, B), cohort_size=2, steps=2, executor=pmap(1, 2), participation=poisson()
    )
    state = sim.init()
    while state.round < 5:
        state, _ = sim.run_rounds(state, 5 - state.round)
    own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
    assert float(state.server.memory["x"]) == pytest.approx(own.mean(), rel=1e-4)
    seen = set(np.concatenate(cohorts(5, 6, 2)).tolist())
    assert len(seen) > 0 and {i for i in range(6) if own[i] != 0} == seen


def test_aggregators_and_excluded_clients_in_rounds_of_any_size(toys):
    """Krum, error feedback and a client that sends NaN, who is named when it is there; empty rounds change nothing."""
    sim = toys.build(
        functools.partial(fedavg, payload="update", aggregate=krum(0.2)), toys.clients([1.0] * 6, [*B[:5], math.nan]),
        cohort_size=2, steps=1, executor=chunked(2), participation=poisson(), uplink=error_feedback(sign()),
    )  # fmt: skip
    state, x, empty, named = sim.init(), 0.0, 0, 0
    for ids in cohorts(12, 6, 2):
        state, line = sim.run_round(state)
        before, x = x, float(sim.variables(state).params["x"])
        assert math.isfinite(x) and (x != before or len(ids) == 0 or ids.tolist() == [5])
        assert (line["excluded"], line["cohort"]) == (5 in ids, len(ids))
        assert line.get("excluded_clients", []) == [5] * (5 in ids)
        empty, named = empty + (len(ids) == 0 and x == before), named + (5 in ids)
    assert empty > 0 and named > 0


def test_going_on_from_a_state_draws_the_same_clients(toys):
    sim = toys.build(fedavg, toys.clients([1.0] * 6, B), cohort_size=2, steps=1, participation=poisson())
    state, whole = sim.run_rounds(sim.init(), 6)
    half, first = sim.run_rounds(sim.init(), 3)
    again = toys.build(fedavg, toys.clients([1.0] * 6, B), cohort_size=2, steps=1, participation=poisson())
    end, second = again.run_rounds(again.place(half), 3)
    plain = lambda lines: [{name: value for name, value in line.items() if name != "train_loss"} for line in lines]
    assert plain(first + second) == plain(whole)
    assert sim.variables(state).params["x"] == again.variables(end).params["x"]


def test_rows_are_streamed_for_rounds_of_any_size(toys):
    data = toys.clients([1.0] * 6, B, [1, 2, 3, 4, 5, 6])
    both = [
        toys.build(fedavg, data, cohort_size=2, steps=2, participation=poisson(), feed_mode=mode)
        for mode in ("resident", "streamed")
    ]
    assert toys.trajectory(both[0], 10) == toys.trajectory(both[1], 10)
