"""The one object that a run asks who takes part: what it promises, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from fedjax8 import participation
from fedjax8.algorithms.fda import fda
from fedjax8.algorithms.fedavg import fedavg
from fedjax8.algorithms.monitors.naive import naive
from fedjax8.errors import UserError
from fedjax8.lookup import component_names, find
from fedjax8.participation import Drawn, Numbers, Participants, Participation, Phases
from fedjax8.participation.base import by_weight, generator
from fedjax8.types import Channel

NAMES = component_names("fedjax8.participation")
NOT_RANDOM = ("stages", "walk")
"""Chosen by their seconds, or by turns, alone."""
EXAMPLES = [
    (name, settings)
    for name in NAMES
    for settings in __import__(f"fedjax8.participation.{name}", fromlist=["EXAMPLES"]).EXAMPLES
]


class Sizes:
    """Clients of these sizes."""

    def __init__(self, sizes):
        self.sizes, self.num_clients = np.asarray(sizes), len(sizes)

    def windows(self, ids):
        return np.zeros(len(ids), int), self.sizes[ids]


def participants(drawn_by, sizes, cohort_size, seed=0):
    steps = lambda sizes: sizes
    return Participants(drawn_by, seed, cohort_size, Sizes(sizes), steps, phases)


def phases(number, ids, sizes):
    """A second a row."""
    return Phases(0 * sizes, 1.0 * sizes, 0 * sizes, np.ones(len(ids)), np.ones(len(ids)))


@pytest.mark.parametrize(("name", "settings"), EXAMPLES)
def test_draws_are_a_function_of_seed_and_round_within_what_is_promised(name, settings):
    make = find(name, "fedjax8.participation")
    size = 1 if name == "asynchronous" else 3 if name == "buffered" else 4
    run, again, other = (participants(make(**settings), range(1, 14), size, seed) for seed in (3, 3, 4))
    numbers, all_of, differ = run.numbers, set(), 0
    for number in (*range(40), 7):
        ids, lost = run.drawn(number)[:2]
        assert np.array_equal(ids, again.drawn(number).ids) and np.array_equal(lost, again.drawn(number).lost)
        assert ids.dtype == np.int64 and lost.dtype == bool and len(set(ids.tolist())) == len(ids)
        assert numbers.least_asked <= len(ids) <= numbers.most_asked
        assert numbers.least_used <= np.count_nonzero(~lost) <= numbers.most_used
        differ += not np.array_equal(ids, other.drawn(number).ids)
        all_of |= set(ids.tolist())
    if name in NOT_RANDOM:
        assert differ == 0
    else:
        assert all_of == set(range(13)) and differ > 20


def test_laws_are_those_of_the_draws_and_everyone_wherever_nobody_can_be_left_out():
    made = {name: find(name, "fedjax8.participation") for name in NAMES}
    few = {"buffered": {"concurrency": 3}, "asynchronous": {"concurrency": 3}}
    size = {"asynchronous": 1}
    laws = {
        name: participants(make(**few.get(name, {})), [1] * 9, size.get(name, 3)).law for name, make in made.items()
    }
    assert laws == {
        "uniform": "without_replacement", "poisson": "poisson", "weighted": "unknown", "cyclic": "unknown",
        "power_of_choice": "unknown", "overselect": "unknown", "buffered": "unknown", "asynchronous": "unknown",
        "stages": "unknown", "available": "unknown", "walk": "unknown",
    }  # fmt: skip
    for name in ("uniform", "poisson", "cyclic"):
        whole = participants(find(name, "fedjax8.participation")(), [1] * 9, 9)
        assert whole.law == "everyone"
        assert all(whole.drawn(number).ids.tolist() == list(range(9)) for number in range(5))


@pytest.mark.parametrize("name", ["weighted", "power_of_choice", "overselect"])
def test_choosing_among_everyone_for_everyone_is_refused(name):
    with pytest.raises(UserError, match=r"config\.participation"):
        _ = participants(find(name, "fedjax8.participation")(), [1] * 9, 9).numbers


@pytest.mark.parametrize(
    ("ids", "lost", "says"),
    [
        ([0, 0], [False, False], "different clients in ascending order"),
        ([1, 0], [False, False], "different clients in ascending order"),
        ([-1, 0], [False, False], "different clients in ascending order"),
        ([0, 5], [False, False], "different clients in ascending order"),
        ([0, 1], [False], "whether each is lost"),
        ([0, 1, 2], [False, False, False], "3 clients were drawn and 3 of them"),
        ([0, 1], [False, True], "2 clients were drawn and 1 of them"),
        ([], [], "0 clients were drawn"),
    ],
)
def test_a_draw_that_breaks_its_promises_ends_the_run(ids, lost, says):
    own = Participation(lambda ask: Drawn(np.array(ids, int), np.array(lost, bool)))
    with pytest.raises(UserError, match=says):
        participants(own, [1] * 5, 2).drawn(0)


def test_successive_sampling_takes_any_weights():
    random = generator(0, 1)
    tiny = np.array([0.0, 1e-320, 1e308, 0.0])
    assert by_weight(random, tiny, 2).tolist() == [1, 2]
    assert all(by_weight(random, tiny, 1).tolist() == [2] for _ in range(20))
    with pytest.raises(UserError, match="only 2 clients have a positive weight, and 3 must be drawn"):
        by_weight(random, tiny, 3)


def test_reports_are_messages_of_everyone_asked():
    run = participants(participation.power_of_choice(5), [1] * 9, 2)
    assert run.reports(5) == {Channel("up", "report", 4, 4): 5} and (run.loses, run.varies) == (True, True)
    plain = participants(participation.uniform(), [1] * 9, 2)
    assert plain.reports(2) == {} and (plain.loses, plain.varies) == (False, False)
    turns = participants(participation.cyclic(), [1] * 9, 2)
    assert (turns.loses, turns.varies) == (False, True)


def test_algorithms_that_need_everyone_refuse_who_does_not_draw_everyone(toys):
    make = lambda local: fda(local, theta=1.0, monitor=naive())
    data = toys.clients([1.0] * 4, [0.0] * 4)
    for drawn_by in (participation.poisson(), participation.cyclic()):
        assert toys.build(make, data, steps=1, participation=drawn_by).participants.law == "everyone"
        with pytest.raises(UserError, match="set cohort_size to 4; it is 2"):
            toys.build(make, data, steps=1, cohort_size=2, participation=drawn_by)
    some = Participation(
        lambda ask: Drawn(np.arange(3), np.zeros(3, bool)), lambda clients, cohort: Numbers(0, cohort, 0, cohort)
    )
    with pytest.raises(UserError, match="which this participation does not promise"):
        toys.build(make, data, steps=1, participation=some)


def test_a_sampler_of_ones_own_is_a_few_lines(toys):
    """The two clients whose turn it is, by number: x moves to the mean of theirs."""
    pairs = Participation(lambda ask: Drawn(np.arange(2) + 2 * (ask.round % 2), np.zeros(2, bool)))
    data = toys.clients([1.0] * 4, [0.0, 2.0, 10.0, 20.0])
    xs = toys.trajectory(toys.build(fedavg, data, steps=1, cohort_size=2, participation=pairs), 2)
    assert xs == pytest.approx([0.1 * 1, 0.1 + 0.1 * (15 - 0.1)], rel=1e-5)
    with pytest.raises(UserError, match="the law of a participation must be one of"):
        toys.build(fedavg, data, steps=1, cohort_size=2, participation=pairs._replace(law="mine"))
    with pytest.raises(UserError, match="participation must be"):
        toys.build(fedavg, data, steps=1, cohort_size=2, participation="poisson")


def test_runs_beside_each_other_have_the_same_numbers(toys):
    data = toys.clients([1.0] * 4, [0.0] * 4)
    first = toys.build(fedavg, data, steps=1, cohort_size=2, participation=participation.poisson())
    toys.build(fedavg, data, steps=1, cohort_size=2, seed=1, beside=first, participation=participation.poisson())
    with pytest.raises(UserError, match="the same participation, cohort_size, and system"):
        toys.build(fedavg, data, steps=1, cohort_size=2, seed=1, beside=first)


def test_runs_beside_each_other_have_as_many_clients(toys):
    """The number of clients stands for padding in programs that they share: another would be a client."""
    data = toys.clients([1.0] * 4, [0.0] * 4)
    first = toys.build(fedavg, data, steps=1, cohort_size=2)
    fewer = dataclasses.replace(data, starts=data.starts[:3], sizes=data.sizes[:3])
    with pytest.raises(UserError, match="must have as many clients, and here are 4 and 3"):
        toys.build(fedavg, fewer, steps=1, cohort_size=2, seed=1, beside=first)
