"""Held-out rows by client: natural ones, and test rows dealt by the labels that clients train on."""

import numpy as np
import pytest

from fedjax8.data.federated import Dataset, FederatedData, federate
from fedjax8.data.held_out import deal, held_out, owned_once
from fedjax8.data.partitions.shards import shards


def dataset(train_labels, test_labels, owners=None, test_owners=None, classes=4):
    parts = [{"x": np.arange(len(y), dtype=np.float32)[:, None], "y": np.int32(y)} for y in (train_labels, test_labels)]
    return Dataset(*parts, classes, (0.0,), (1.0,), "hand made", owners, test_owners)


def test_rows_go_to_clients_in_the_shares_of_their_labels():
    """Of label 0 client 0 trains on 3 of 4 rows, of label 1 client 1 on all; nobody on label 2."""
    shares = np.array([[3, 0, 0], [1, 5, 0], [0, 0, 0]])
    labels = np.repeat([0, 1, 2], [8, 6, 5])
    owners = deal(np.random.default_rng(0), labels, shares)
    counted = [[int(np.sum((owners == k) & (labels == c))) for c in range(3)] for k in (0, 1, 2, -1)]
    assert counted == [[6, 0, 0], [2, 6, 0], [0, 0, 0], [0, 0, 5]]


def test_shares_that_are_no_whole_rows_are_rounded_to_a_neighbor_and_met_on_average():
    """Ten rows of shares 1 : 2 : 4, that is 10/7, 20/7 and 40/7; over 2000 draws the mean of a share that is rounded
    at random has a standard error of at most 0.5 / sqrt(2000) = 0.011; four of these are allowed."""
    shares, labels = np.array([[1], [2], [4]]), np.zeros(10, np.int64)
    counts = np.array([np.bincount(deal(np.random.default_rng(s), labels, shares), minlength=3) for s in range(2000)])
    exact = 10 * shares[:, 0] / 7
    assert (counts.sum(axis=1) == 10).all()
    assert ((counts == np.floor(exact)) | (counts == np.ceil(exact))).all()
    np.testing.assert_allclose(counts.mean(axis=0), exact, atol=0.045)


def test_clients_of_two_labels_are_tested_on_these_two():
    """Ten clients with two shards each of whole labels: their held-out rows have the same labels in the same shares."""
    data = dataset(np.repeat(np.arange(4), 50), np.repeat(np.arange(4), 20))
    clients = federate(data, shards(2), 10, seed=3)
    found = held_out(data, clients)
    assert found.kind == "dealt" and found.clients.columns is data.test
    np.testing.assert_array_equal(found.clients.label_counts(4) * 50, clients.label_counts(4) * 20)
    rows = np.concatenate([found.clients.rows(k) for k in range(10)])
    assert sorted(rows.tolist()) == list(range(80))  # each row once
    again = held_out(data, clients, seed=0)
    np.testing.assert_array_equal(again.clients.order, found.clients.order)
    assert not np.array_equal(held_out(data, clients, seed=1).clients.order, found.clients.order)


def test_natural_owners_are_followed_where_the_split_keeps_them_together():
    owners, test_owners = np.int32([7, 7, 9, 9, 9]), np.int32([7, 9, 9, 11])
    data = dataset([0, 0, 1, 0, 1], [1, 1, 0, 0], owners, test_owners)
    natural = FederatedData.from_owners(data.train, np.int32([0, 0, 1, 1, 1]), 2)
    found = held_out(data, natural)
    assert found.kind == "natural"
    assert [found.clients.rows(k).tolist() for k in (0, 1)] == [[0], [1, 2]]  # row 3 is of nobody here
    mixed = FederatedData.from_owners(data.train, np.int32([0, 1, 0, 1, 0]), 2)
    assert held_out(data, mixed).kind == "dealt"


def test_sequences_are_dealt_by_sizes():
    train, test = ({"x": np.zeros((n, 3), np.int32), "y": np.zeros((n, 3), np.int32)} for n in (12, 8))
    data = Dataset(train, test, 2, (0.0,), (1.0,), "text")
    clients = FederatedData.from_owners(train, np.repeat([0, 1, 2], [3, 9, 0]), 4)
    assert held_out(data, clients).clients.sizes.tolist() == [2, 6, 0, 0]


@pytest.mark.parametrize(
    ("starts", "sizes", "once"),
    [([0, 2], [2, 3], True), ([0, 2, 5], [2, 3, 0], True), ([0, 1], [2, 3], False), ([0, 2], [2, 2], False)],
)
def test_clients_that_share_rows_or_leave_some_do_not_own_them_once(starts, sizes, once):
    columns = {"x": np.zeros(5, np.float32)}
    made = FederatedData(columns, np.arange(5, dtype=np.int32), np.int64(starts), np.int32(sizes))
    assert owned_once(made) is once
