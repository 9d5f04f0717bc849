"""Clients as windows into rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax8.data.federated import Dataset, FederatedData, match_test_owners
from fedjax8.errors import UserError

COLUMNS = {"x": np.arange(12, dtype=np.uint8).reshape(6, 2), "y": np.array([0, 2, 1, 2, 0, 2], np.int32)}


def small_dataset(**changes):
    part = {"x": np.zeros((4, 3), np.uint8), "y": np.array([0, 1, 2, 1], np.int32)}
    dataset = Dataset(part, {name: column[:2] for name, column in part.items()}, 3, (0.5,), (0.2,), "small")
    return dataset._replace(**changes)


def test_from_owners_keeps_the_order_of_rows_within_a_client():
    data = FederatedData.from_owners(COLUMNS, np.array([1, 0, 1, -1, 0, 1]), 3)
    assert [data.rows(c).tolist() for c in range(3)] == [[1, 4], [0, 2, 5], []]
    assert data.sizes.tolist() == [2, 3, 0] and data.num_clients == 3 and data.num_examples == 5
    assert data.client(1)["x"].tolist() == [[0, 1], [4, 5], [10, 11]]
    assert data.client(1)["y"].tolist() == [0, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-1, 4), min_size=1, max_size=40))
def test_from_owners_gives_each_client_the_rows_that_name_it(owners):
    owners = np.array(owners)
    data = FederatedData.from_owners({"y": np.zeros(len(owners), np.int32)}, owners, 5)
    for client in range(5):
        assert data.rows(client).tolist() == np.flatnonzero(owners == client).tolist()
    assert (data.order.dtype, data.starts.dtype, data.sizes.dtype) == (np.int32, np.int64, np.int32)


def test_clients_may_share_rows():
    order, starts = np.arange(6, dtype=np.int32), np.array([0, 1, 0], np.int64)
    data = FederatedData(COLUMNS, order, starts, np.array([6, 2, 3], np.int32))
    assert data.num_examples == 11
    assert data.client(1)["y"].tolist() == [2, 1]
    assert data.label_counts(3).tolist() == [[2, 1, 3], [0, 1, 1], [1, 1, 1]]


def test_label_counts_agree_with_counting_one_client_at_a_time():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 7, 500).astype(np.int32)
    starts = rng.integers(0, 400, 60)
    sizes = rng.integers(0, 100, 60).astype(np.int32)
    order = rng.permutation(500).astype(np.int32)
    data = FederatedData({"y": labels}, order, starts, sizes)
    expected = [np.bincount(labels[order[a : a + n]], minlength=7) for a, n in zip(starts, sizes, strict=True)]
    np.testing.assert_array_equal(data.label_counts(7), expected)


def test_select_keeps_the_listed_clients_in_their_order():
    data = FederatedData.from_owners(COLUMNS, np.array([0, 1, 2, 0, 1, 2]), 3).select(np.array([2, 0]))
    assert [data.rows(c).tolist() for c in range(data.num_clients)] == [[2, 5], [0, 3]]


@pytest.mark.parametrize("client", [-1, 3])
def test_a_client_outside_the_range_is_an_index_error(client):
    data = FederatedData.from_owners(COLUMNS, np.array([0, 1, 2, 0, 1, 2]), 3)
    with pytest.raises(IndexError, match="of 3"):
        data.client(client)


@pytest.mark.parametrize(
    ("owners", "num_clients", "says"),
    [
        ([0, 1], 2, "one per row"),
        ([0, 1, 2, 3, 0, 1], 3, "0 to 3"),
        ([0, -2, 0, 0, 0, 0], 3, "-1"),
        ([0.0] * 6, 3, "float64"),
        ([0] * 6, 0, "at least 1"),
    ],
)
def test_wrong_owners_are_named(owners, num_clients, says):
    with pytest.raises(UserError, match=says):
        FederatedData.from_owners(COLUMNS, np.array(owners), num_clients)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"columns": {}}, "no columns"),
        ({"columns": {"x": np.zeros(6), "y": np.zeros(5)}}, "equal length"),
        ({"order": np.arange(6)}, "order is int64"),
        ({"order": np.array([0, 6], np.int32)}, "rows 0 to 6"),
        ({"starts": np.array([0], np.int64)}, "1 starts and 2 sizes"),
        ({"sizes": np.array([3, 4], np.int32)}, "window leaves"),
        ({"sizes": np.array([-1, 3], np.int32)}, "window leaves"),
    ],
)
def test_inconsistent_windows_are_named(changes, says):
    fields = {
        "columns": COLUMNS,
        "order": np.arange(6, dtype=np.int32),
        "starts": np.array([0, 3], np.int64),
        "sizes": np.array([3, 3], np.int32),
    }
    assert FederatedData(**fields).num_examples == 6
    with pytest.raises(UserError, match=says):
        FederatedData(**(fields | changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_classes": 2}, "labels run from 0 to 2; 2 classes"),
        ({"train": {"x": np.zeros((4, 3))}}, r"no column \['y'\]"),
        ({"train": {"x": np.zeros((4, 3)), "y": np.zeros(3, np.int32)}}, "equal length"),
        ({"train": {"x": np.zeros((0, 3)), "y": np.zeros(0, np.int32)}}, "train is empty"),
        ({"test": {"x": np.zeros((2, 4), np.uint8), "y": np.zeros(2, np.int32)}}, "must agree"),
        ({"test": {"x": np.zeros((2, 3), np.uint8), "y": np.zeros(2, np.int64)}}, "test labels are int64"),
        ({"owners": np.zeros(3, np.int32)}, "train owners"),
        ({"test_owners": np.array([0, -1])}, "test owners"),
        ({"std": (0.0,)}, "std above 0"),
    ],
)
def test_an_inconsistent_dataset_is_named(changes, says):
    valid = small_dataset()
    assert valid.validate() is valid
    with pytest.raises(UserError, match=says):
        small_dataset(**changes).validate()


SEQUENCES = {"x": np.arange(12, dtype=np.int32).reshape(4, 3), "y": np.arange(12, dtype=np.int32).reshape(4, 3) % 3}


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        ([[0, 1, -1], [2, -1, -1], [2, 2, 2], [0, 0, 0]], None),
        ([[0, 1, -2], [2, -1, -1], [2, 2, 2], [0, 0, 0]], "from -2 to 2; 3 classes allow 0 to 2 and -1 where there is"),
        ([[0, 1, 3], [2, -1, -1], [2, 2, 2], [0, 0, 0]], "from -1 to 3"),
        ([[0, 1, 2], [2, -1, -1], [-1, -1, -1], [0, 0, 0]], "row 2 has no target"),
        ([[0, 1], [2, -1], [2, 2], [0, 0]], r"\(4, 2\); they must be int32 \[4\], or one for each position"),
    ],
)
def test_a_row_may_have_a_label_for_each_position_or_none_there_but_not_for_all(labels, says):
    dataset = small_dataset(train=SEQUENCES | {"y": np.array(labels, np.int32)}, test=SEQUENCES)
    if says is None:
        assert dataset.validate() is dataset
        return
    with pytest.raises(UserError, match=says):
        dataset.validate()


def test_train_and_test_are_labeled_alike():
    with pytest.raises(UserError, match="only one of train and test has a label for each position"):
        small_dataset(train=SEQUENCES, test=SEQUENCES | {"y": np.zeros(4, np.int32)}).validate()


def test_label_sequences_have_no_classes_to_count():
    data = FederatedData.from_owners(SEQUENCES, np.array([0, 1, 1, 0]), 2)
    assert data.client(1)["y"].tolist() == [[0, 1, 2], [0, 1, 2]]
    with pytest.raises(UserError, match=r"rows of shape \(3,\); counting needs one integer per row"):
        data.label_counts(3)


def test_natural_clients_are_counted():
    assert small_dataset().num_natural_clients == 0
    assert small_dataset(owners=np.array([4, 0, 4, 9])).num_natural_clients == 3


def test_test_rows_follow_their_natural_client():
    dataset = small_dataset(owners=np.array([4, 0, 4, 2]), test_owners=np.array([2, 4]))
    assert match_test_owners(dataset, np.array([1, -1, 1, 0])).tolist() == [0, 1]
    dataset = dataset._replace(test_owners=np.array([0, 7]))  # one whose rows are unused, one never seen
    assert match_test_owners(dataset, np.array([1, -1, 1, 0])).tolist() == [-1, -1]


def test_test_rows_have_no_client_without_natural_clients_or_when_these_are_spread():
    with pytest.raises(UserError, match="natural client"):
        match_test_owners(small_dataset(), np.zeros(4, np.int32))
    dataset = small_dataset(owners=np.array([4, 0, 4, 2]), test_owners=np.array([2, 4]))
    with pytest.raises(UserError, match="by_key"):
        match_test_owners(dataset, np.array([0, 0, 1, 1]))
