"""Walking tokens: where they are by hand, whom they may visit, how often, and what is refused."""

import itertools

import numpy as np
import pytest

from fedjax8 import topologies
from fedjax8.errors import UserError
from fedjax8.participation import Ask, walk
from fedjax8.participation.walk import hearers
from fedjax8.topologies import matrix


def ask(number, clients=6, tokens=1, seed=0):
    return Ask(seed, number, clients, tokens, lambda ids: ids, lambda sizes: sizes, lambda ids: ids)


def places(made, rounds, **more):
    """Client of each token by round, -1 where it waits."""
    found = []
    for number in range(rounds):
        drawn = made.draw(ask(number, **more))
        at = np.full(more.get("tokens", 1), -1)
        at[drawn.tokens] = drawn.ids
        found.append(at)
    return np.array(found)


def test_without_a_topology_tokens_go_by_turns_as_far_apart_as_they_can():
    assert places(walk(), 7)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert places(walk(), 3, tokens=3).tolist() == [[0, 2, 4], [1, 3, 5], [2, 4, 0]]


def test_tokens_go_along_the_edges_and_never_meet():
    graph = topologies.torus()
    adjacent = matrix(graph.graph(0, 12)) > 0
    at = places(walk(graph), 200, clients=12, tokens=5)
    for before, after in itertools.pairwise(at):
        known = after[after >= 0]
        assert len(set(known)) == len(known)
        moved = (before >= 0) & (after >= 0)
        assert adjacent[before[moved], after[moved]].all()
    assert len(np.unique(at)) >= 12


def test_a_directed_edge_leads_from_the_sender_to_those_who_hear_it():
    """In the exponential graph of four, worker i hears i - 1 and i - 2, so that 0 is heard by 1 and 2."""
    found = hearers(topologies.exponential().graph(0, 4))
    assert [who.tolist() for who in found] == [[1, 2], [2, 3], [0, 3], [0, 1]]


def test_every_neighbor_is_as_likely():
    """From the middle of a star to each of five others, 1/5 of some 1000 moves; deviation 12.6."""
    at = places(walk(topologies.star()), 2000)[:, 0]
    assert np.all(at[::2] == 0)
    counts = np.bincount(at[1::2], minlength=6)[1:]
    assert counts.sum() == 1000 and np.abs(counts - 200).max() < 5 * 12.6


def test_draws_are_a_function_of_the_seed_and_the_round():
    made, again = walk(topologies.ring()), walk(topologies.ring())
    forwards = places(made, 50)
    assert made.draw(ask(7)).ids == forwards[7] and again.draw(ask(49)).ids == forwards[49]
    assert not np.array_equal(places(walk(topologies.ring()), 50, seed=1), forwards)


def test_a_client_whom_nobody_hears_is_refused(tmp_path):
    pytest.importorskip("pyarrow")
    path = tmp_path / "edges.csv"
    path.write_text("from,to\n0,1\n")
    with pytest.raises(UserError, match="whom no other hears"):
        walk(topologies.file(str(path))).numbers(3, 1)
