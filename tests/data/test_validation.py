"""The validation part: rows, or clients with all their rows, that nobody trains on."""

import numpy as np
import pytest

from fedjax8.data.federated import Dataset, FederatedData, match_test_owners
from fedjax8.data.validation import validation_part
from fedjax8.engine.start import sample_batch
from fedjax8.errors import UserError

SIZES = (40, 0, 7, 1, 25, 2)


def clients():
    """Client of every row, in mixed order, and the clients; a row's value is its number."""
    owners = np.random.default_rng(0).permutation(np.repeat(np.arange(len(SIZES)), SIZES))
    columns = {"x": np.arange(len(owners), dtype=np.float32), "y": np.zeros(len(owners), np.int32)}
    return owners, FederatedData.from_owners(columns, owners, len(SIZES))


def rows_of(data):
    return [set(data.client(c)["x"].astype(int)) for c in range(data.num_clients)]


@pytest.mark.parametrize("share", [0.1, 0.3, 0.9])
def test_a_share_of_each_clients_rows_is_held_out_and_the_others_stay_whose_they_were(share):
    owners, data = clients()
    found = validation_part(data, share, "rows", seed=3)
    held = set(found.rows["x"].astype(int))
    assert found.clients.columns is data.columns and len(held) == len(found.rows["y"])
    for before, after, size in zip(rows_of(data), rows_of(found.clients), SIZES, strict=True):
        assert after <= before and before - after == before & held
        assert len(before - after) in (
            min(int(share * size), max(size - 1, 0)),
            min(int(share * size) + 1, max(size - 1, 0)),
        )
    assert set(found.clients.order) == set(range(len(owners))) - held  # calibration takes its rows from the order
    assert not held & set(np.asarray(sample_batch(found.clients)["x"]).astype(int))


def test_the_share_is_right_in_the_mean_also_where_clients_have_few_rows():
    data = FederatedData.from_owners(
        {"x": np.zeros(4000)[:, None], "y": np.zeros(4000, np.int32)}, np.repeat(np.arange(1000), 4), 1000
    )
    count = len(validation_part(data, 0.1, seed=1).rows["y"])
    assert abs(count - 400) < 4 * np.sqrt(1000 * 0.4 * 0.6)  # four standard deviations of 1000 draws of 0 or 1


def test_whole_clients_are_held_out_with_all_their_rows():
    _, data = clients()
    before = rows_of(data)
    found = validation_part(data, 0.4, "clients", seed=5)
    held = set(found.rows["x"].astype(int))
    after = rows_of(found.clients)
    out = [rows for rows in before if rows and rows <= held]
    assert len(out) == 2 and set.union(*out) == held  # two of five that have rows
    assert after == [rows for rows in before if not rows or not rows <= held]


@pytest.mark.parametrize("of", ["rows", "clients"])
def test_the_same_seed_holds_out_the_same_rows_and_another_others(of):
    _, data = clients()
    first, again, other = (validation_part(data, 0.3, of, seed).rows["x"] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert set(first) != set(other)


def test_rows_that_lie_client_by_client_are_held_out_too():
    columns = {"x": np.arange(10, dtype=np.float32), "y": np.zeros(10, np.int32)}
    data = FederatedData(columns, None, np.array([0, 6]), np.array([6, 4], np.int32))
    found = validation_part(data, 0.5, seed=0)
    first, second = rows_of(found.clients)
    assert len(first) == 3 and first < set(range(6)) and len(second) == 2 and second < set(range(6, 10))
    assert set(found.rows["x"].astype(int)) == set(range(10)) - first - second


@pytest.mark.parametrize(
    ("share", "of", "message"),
    [
        (0.0, "rows", "give a share above 0 and below 1"),
        (1.0, "rows", "give a share above 0 and below 1"),
        (0.1, "columns", "must be one of rows, clients"),
    ],
)
def test_what_cannot_be_held_out_is_refused(share, of, message):
    with pytest.raises(UserError, match=message):
        validation_part(clients()[1], share, of)


def test_a_share_that_holds_out_nothing_is_refused():
    columns = {"x": np.zeros((3, 1)), "y": np.zeros(3, np.int32)}
    single = FederatedData.from_owners(columns, np.arange(3), 3)  # a row each, which stays
    with pytest.raises(UserError, match="holds out no row of 3; give a larger share, or validation_of=clients"):
        validation_part(single, 0.5)
    with pytest.raises(UserError, match="needs two clients with rows; here are 1"):
        validation_part(FederatedData.from_owners(columns, np.zeros(3, np.int32), 1), 0.5, "clients")


@pytest.mark.parametrize("of", ["rows", "clients"])
def test_rows_of_several_clients_are_refused(of):
    columns = {"x": np.zeros((6, 1)), "y": np.zeros(6, np.int32)}
    shared = FederatedData(columns, np.arange(6, dtype=np.int32), np.array([0, 3]), np.array([4, 3], np.int32))
    with pytest.raises(UserError, match="here clients share rows"):
        validation_part(shared, 0.5, of)


def test_test_rows_still_go_to_natural_clients_of_which_rows_are_held_out():
    part = {"x": np.zeros((6, 1), np.float32), "y": np.zeros(6, np.int32)}
    natural = np.array([0, 0, 0, 1, 1, 1], np.int32)
    dataset = Dataset(part, part, 2, (0.0,), (1.0,), "toy", natural, natural)
    held = np.where(np.arange(6) % 3 == 0, -1, natural)
    np.testing.assert_array_equal(match_test_owners(dataset, held), natural)
