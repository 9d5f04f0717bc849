"""Cohorts are dealt to devices by work; plans are a function of seed and round; padding is counted as a hand would."""

import functools

import numpy as np
import pytest

from fedjax8.data.batches import batch_plan
from fedjax8.engine.planning import deal, planner, rows_seen
from fedjax8.participation import Participants, sample_cohort, uniform


@pytest.mark.parametrize(("shards", "chunk"), [(1, 1), (2, 1), (4, 1), (2, 3), (3, 100)])
def test_dealing_uses_every_client_once_and_balances_the_work(shards, chunk, rng):
    work = rng.integers(1, 200, size=50)
    places = deal(work, shards, chunk).positions
    assert sorted(places[places >= 0]) == list(range(50))
    loads = [work[hand[hand >= 0]].sum() for hand in places]
    if chunk == 1:
        assert max(loads) - min(loads) <= work.max()
    for hand in places:
        assert np.all(np.diff(work[hand[hand >= 0]]) <= 0)  # the longest first


def test_one_giant_client_gets_a_device_almost_to_itself():
    work = np.array([100] + [10] * 11)
    giant, rest = deal(work, 2, 1).positions
    assert 0 in giant and 0 not in rest
    # Six places on each device: the giant's other five are as short as can be, yet no fewer.
    assert work[giant].sum() == 150 and work[rest].sum() == 60


@pytest.mark.parametrize(
    ("work", "shards", "chunk", "padding"),
    [
        ([4, 4, 4, 4], 2, 1, 0.0),
        ([8, 4, 2, 2], 1, 2, 1 - 16 / (8 + 8 + 2 + 2)),  # the second of a group waits for the first
        ([3, 3, 3], 2, 1, 0.0),  # an empty place takes no steps
        ([6, 3, 3], 1, 2, 1 - 12 / (12 + 6)),  # but an empty place in a group takes those of the group
        ([0, 0], 2, 1, 0.0),
    ],
)
def test_padding_is_what_a_hand_count_gives(work, shards, chunk, padding):
    assert deal(np.array(work), shards, chunk).padding == pytest.approx(padding, abs=1e-12)


def test_masked_rows_of_last_batches_are_padding():
    sizes = np.array([25, 10, 1, 0])
    plan = batch_plan(10, epochs=2)
    np.testing.assert_array_equal(rows_seen(plan, sizes), [50, 20, 2, 0])
    work = np.array([60, 20, 20, 0])
    assert deal(work, 1, 1, useful=rows_seen(plan, sizes)).padding == pytest.approx(1 - 72 / 100)
    # Five steps of ten over 25 rows: two batches of ten, one of five, then two of ten again.
    np.testing.assert_array_equal(rows_seen(batch_plan(10, steps=5), sizes), [45, 50, 5, 0])


class Sizes:
    """Clients of these sizes."""

    def __init__(self, sizes):
        self.sizes, self.num_clients = sizes, len(sizes)

    def windows(self, ids):
        real = ids < len(self.sizes)
        return np.zeros(ids.shape, np.int64), np.where(real, self.sizes[np.where(real, ids, 0)], 0)


def make_planner(sizes, participation=uniform(), **settings):  # noqa: B008 (a constant)
    usual = {
        "participants": Participants(participation, 3, 6, Sizes(sizes), lambda sizes: sizes),
        "batches": None,
        "num_shards": 2,
        "chunk": 1,
        "most_rounds": 4,
        "stay": 0,
        "most_rows": None,
    }
    return planner(**{**usual, **settings})


@pytest.fixture
def sizes(rng):
    return rng.integers(1, 30, size=20)


def test_a_plan_has_the_cohorts_of_its_rounds_and_pads_the_rest(sizes):
    plan = make_planner(sizes)(5, 3)
    assert (plan.first, plan.rounds, len(plan.padding)) == (5, 3, 3)
    assert plan.ids.shape == plan.slots.shape == (2, 4, 3)
    for i in range(3):
        assert sorted(plan.ids[:, i].ravel()) == sample_cohort(3, 5 + i, 20, 6).tolist()
    assert np.all(plan.ids[:, 3] == 20)


def test_plans_of_single_rounds_are_those_of_a_longer_call(sizes):
    plan = make_planner(sizes)
    for i in range(4):
        np.testing.assert_array_equal(plan(7, 4).ids[:, i], plan(7 + i, 1).ids[:, 0])


def test_a_client_that_remembers_stays_on_its_device_and_has_one_place_in_its_table(sizes):
    make = functools.partial(make_planner, sizes, stay=8, most_rounds=8)
    first, seen = 0, 0
    while first < 40:
        plan = make()(first, 8)
        homes = {}
        for shard in range(2):
            for i in range(plan.rounds):
                for client, slot in zip(plan.ids[shard, i], plan.slots[shard, i], strict=True):
                    assert homes.setdefault(client, shard) == shard or client == 20
                    assert client == 20 or plan.table[shard, slot] == client
            real = plan.table[shard][plan.table[shard] < 20]
            assert len(set(real)) == len(real)
        assert 1 <= plan.rounds <= 8
        for i in range(plan.rounds):
            ids = plan.ids[:, i]
            assert sorted(ids[ids < 20]) == sample_cohort(3, first + i, 20, 6).tolist()
        first, seen = first + plan.rounds, max(seen, plan.rounds)
    assert seen > 1  # or the rule would be worth nothing


def test_where_clients_stay_does_not_depend_on_where_calls_begin(sizes):
    plan = make_planner(sizes, stay=8, most_rounds=8)
    single = {number: plan(number, 1).ids[:, 0] for number in range(24)}
    for step in (2, 3, 8):
        first = 0
        while first < 24:
            call = plan(first, step)
            for i in range(min(call.rounds, 24 - first)):
                np.testing.assert_array_equal(call.ids[:, i], single[first + i])
            first += call.rounds


@pytest.mark.parametrize("most_rounds", [1, 3, 8, 30])
def test_where_clients_stay_does_not_depend_on_how_many_rounds_a_call_may_have(sizes, most_rounds):
    whole, first = make_planner(sizes, stay=8, most_rounds=8), 0
    plan = make_planner(sizes, stay=8, most_rounds=most_rounds)
    while first < 24:
        call = plan(first, most_rounds)
        assert 1 <= call.rounds <= min(most_rounds, 8 - first % 8)
        for i in range(call.rounds):
            np.testing.assert_array_equal(call.ids[:, i], whole(first + i, 1).ids[:, 0])
        first += call.rounds


def test_homes_that_leave_no_room_end_the_call():
    work = np.ones(4)
    assert deal(work, 2, 1, homes=np.array([0, 0, 0, -1])) is None
    dealt = deal(work, 2, 1, homes=np.array([1, -1, 1, -1]))
    assert sorted(dealt.positions[1]) == [0, 2]


def test_a_call_ends_before_its_rows_are_too_many(sizes):
    whole = make_planner(sizes)(0, 4)
    rows = np.where(whole.ids < 20, sizes[np.where(whole.ids < 20, whole.ids, 0)], 0).sum(axis=2)  # [S, R]
    limit = int(rows[:, :2].sum(axis=1).max())
    assert make_planner(sizes, most_rows=limit)(0, 4).rounds == 2
    assert make_planner(sizes, most_rows=1)(0, 4).rounds == 1  # one round always runs
