"""The largest losses among candidates: who they are, what their losses are, and what asking costs."""

import functools

import numpy as np
import pytest
from scipy import stats

from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.scaffold import scaffold
from fedjax8.engine.side_by_side import side_by_side
from fedjax8.errors import UserError
from fedjax8.executors.chunked import chunked
from fedjax8.executors.pmap import pmap
from fedjax8.participation import Ask, power_of_choice


def ask(sizes, losses, cohort_size=2, r=0):
    sizes = np.asarray(sizes)
    return Ask(0, r, len(sizes), cohort_size, lambda ids: sizes[ids], lambda sizes: sizes, losses)


def test_the_candidates_with_the_largest_losses_are_chosen():
    losses = np.array([3.0, np.nan, 5.0, np.inf, 5.0, 1.0, 0.0])
    for r in range(30):
        ids, lost = power_of_choice(4).draw(ask([1] * 7, lambda ids: losses[ids], r=r))[:2]
        known = np.where(np.isfinite(losses), losses, -1)
        assert len(ids) == 4
        assert ids[~lost].tolist() == sorted(sorted(ids, key=lambda i: (-known[i], i))[:2])


def test_candidates_come_by_their_share_of_the_data():
    """One place, two candidates of three: pairs by successive sampling, 3000 draws."""
    w, draws = np.array([1, 2, 3]), 3000
    made = power_of_choice(2)
    seen = [tuple(made.draw(ask(w, lambda ids: np.zeros(len(ids)), 1, r)).ids.tolist()) for r in range(draws)]
    p = w / 6
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = [draws * p[i] * p[j] * (1 / (1 - p[i]) + 1 / (1 - p[j])) for i, j in pairs]
    assert stats.chisquare([seen.count(pair) for pair in pairs], expected).pvalue > 1e-4


@pytest.mark.parametrize(("candidates", "cohort"), [(4, 4), (3, 4), (11, 4), (0, 10)])
def test_there_must_be_something_to_choose(candidates, cohort):
    with pytest.raises(UserError, match="nothing to choose"):
        power_of_choice(candidates).numbers(10, cohort)
    assert power_of_choice().numbers(10, 3).most_asked == 6
    assert power_of_choice().numbers(10, 8).most_asked == 10
    with pytest.raises(ValueError, match="must not be negative"):
        power_of_choice(-1)


B = [1.0, -2.0, 4.0, 8.0, -16.0, 32.0, 0.5]
ROWS = [1, 2, 3, 1, 2, 3, 0]


def by_hand(count, candidates):
    """(x after each round, candidates, chosen): losses are (x - b)^2 / 2, one SGD step of 0.1 each, uniform weights."""
    x, found = np.float32(0), []
    for r in range(count):
        losses = lambda ids, x=x: np.array([0.5 * (x - B[i]) ** 2 for i in ids])
        ids, lost = power_of_choice(candidates).draw(ask(ROWS, losses, r=r))[:2]
        x = x + 0.1 * (np.mean([B[i] for i in ids[~lost]]) - x)
        found.append((x, ids, ids[~lost]))
    return found


def build(toys, make=None, executor=None, data=None, **more):
    return toys.build(
        make or functools.partial(fedavg, weighting="uniform"),
        toys.clients([1.0] * 7, B, ROWS) if data is None else data,
        cohort_size=2, steps=1, batch_size=2, participation=power_of_choice(4), executor=executor, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("executor", "feed_mode"),
    [(chunked(3), "resident"), (pmap(1, 2), "streamed")],
    ids=["chunked", "pmap"],
)
def test_rounds_are_what_a_hand_computes(toys, executor, feed_mode):
    sim = build(toys, executor=executor, feed_mode=feed_mode)
    state = sim.init()
    for r, (x, _, _) in enumerate(by_hand(5, 4)):
        state, lines = sim.run_rounds(state, 5, then=5)
        assert len(lines) == 1  # the next round's clients are not known before
        assert float(sim.variables(state).params["x"]) == pytest.approx(x, rel=1e-5)
        assert (lines[0]["cohort"], lines[0]["clients"]) == (4, 2)
        assert lines[0]["downlink_bytes"] == 4 * 4 * (r + 1)
        assert lines[0]["uplink_report_bytes"] == 4 * 4 * (r + 1)
        assert lines[0]["uplink_model_bytes"] == 4 * 2 * (r + 1)
        assert lines[0]["uplink_bytes"] == (16 + 8) * (r + 1)


def test_losses_are_means_over_all_rows_of_a_client(toys):
    """Rows of unlike values, batches of two with a last one of one; a client without rows has loss 0."""
    rows = [[1.0, 2.0, 6.0], [3.0], [], [5.0, -5.0]]
    sim = toys.build(
        fedavg, toys.with_rows(rows), cohort_size=1, steps=1, batch_size=2, start=0.5,
        participation=power_of_choice(2), executor=pmap(1, 2),
    )  # fmt: skip
    losses = sim._present(sim.init()).losses(np.array([0, 1, 2, 3]))
    expected = [np.mean([0.5 * (0.5 - b) ** 2 for b in of_client]) if of_client else 0.0 for of_client in rows]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_going_on_needs_a_state_and_a_round_number(toys):
    sim, again = build(toys), build(toys)
    state, _ = sim.run_round(sim.init())
    state, _ = sim.run_round(state)
    ends = []
    for run in (sim, again):
        at, line = run.run_round(run.place(state))
        ends.append((float(run.variables(at).params["x"]), line))
    assert ends[0] == ends[1]


def test_candidates_that_are_not_chosen_keep_what_they_remember(toys):
    sim = build(toys, functools.partial(scaffold, learning_rate=0.1), executor=pmap(1, 2))
    state, _ = sim.run_round(sim.init())
    own = np.asarray(state.clients.arrays()["algorithm"]["memory"]["x"])
    (_, _, chosen) = by_hand(1, 4)[0]
    assert {i for i in range(7) if own[i] != 0} == set(chosen.tolist())


def test_seeds_side_by_side_choose_for_themselves(toys):
    data = toys.clients([1.0] * 7, B, ROWS)
    first = build(toys, executor=chunked(1), data=data)
    runs = [first, build(toys, executor=chunked(1), data=data, seed=5, beside=first)]
    advance, states = side_by_side(runs), [run.init() for run in runs]
    for _ in range(2):
        states, _ = advance(states, [3, 3], [3, 3])
    for run, state, seed in zip(runs, states, (0, 5), strict=True):
        alone = build(toys, seed=seed)
        assert float(run.variables(state).params["x"]) == pytest.approx(toys.trajectory(alone, 2)[-1], rel=1e-6)
