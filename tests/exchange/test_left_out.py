"""Clients that were left out are named from sums that do not grow with them."""

import jax
import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.exchange.left_out import CELLS, cells, named, no_cells
from fedjax8.hosts import ALONE
from fedjax8.running.recording import Recording, Run
from fedjax8.running.schedule import Schedule, who_of

K = 10_000_000


def summed(*clients):
    """What the exchanges of a round add up to in which these were left out, and clients 7 and 8 were not."""
    ids = np.resize(np.int32([7, 8]), 256)
    ids[: len(clients)] = clients
    return np.asarray(add_up(ids, np.arange(256) < len(clients)))


@jax.jit
def add_up(ids, left_out):
    return no_cells() + jax.vmap(cells)(ids, left_out).sum(axis=0)


def test_the_few_who_are_left_out_are_named_also_beyond_16_bits():
    assert named(summed(), K) == []
    for clients in ([0], [3, 9_999_999], [65_536, 65_537, 5_000_000]):
        assert named(summed(*clients), K) == clients


def test_one_that_is_left_out_in_many_exchanges_of_a_round_is_named_once():
    assert named(summed(*[41] * 9, *[8] * 2), K) == [8, 41]


def test_of_many_nobody_is_named_wrongly(rng):
    for count in (10, 30, 200):
        clients = rng.choice(K, count, replace=False)
        found = named(summed(*clients), K)
        assert set(found) <= set(clients.tolist()) and len(found) <= CELLS
        assert found or count > 10


def test_two_who_share_a_cell_are_not_taken_for_one_between_them():
    of_cell = {}
    for i in range(0, 1000, 2):
        of_cell.setdefault(int(np.argmax(summed(i)[:, 0])), []).append(i)
    pair = next(ids for ids in of_cell.values() if len(ids) > 1)[:2]
    assert named(summed(*pair), K) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"excluded": 0}, ""),
        ({"excluded": 2}, ""),
        ({"excluded": 1, "excluded_clients": [3]}, " (client 3)"),
        ({"excluded": 4, "excluded_clients": [3, 17]}, " (clients 3, 17 and 2 more)"),
    ],
)
def test_who_was_excluded_in_words(line, words):
    assert who_of(line) == words


def test_a_round_that_was_taken_back_is_said_once_and_may_end_the_run():
    recording = Recording(Run(None), ALONE)
    for number, more in ((1, {}), (2, {"rejected": 1}), (3, {"rejected": 1})):
        recording.write({"round": number, "excluded": 0} | more)
    (note,) = recording.notes
    assert note.startswith("round 2: rejected, the server's step gave numbers that are not finite or too large; ")
    Schedule(3, 1, 1, "drop").check({"round": 2, "rejected": 1})
    with pytest.raises(UserError, match=r"round 2: the server's step gave numbers .*on_nan=error"):
        Schedule(3, 1, 1, "error").check({"round": 2, "excluded": 0, "rejected": 1})
