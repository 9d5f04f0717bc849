"""The two skewed splits of federated dynamic averaging: a share of the rows sorted, one label first."""

import numpy as np
import pytest

from fedjax8.data.federated import Dataset, FederatedData
from fedjax8.data.partitions.iid import iid
from fedjax8.data.partitions.label_first import label_first
from fedjax8.data.partitions.sorted_share import sorted_share
from fedjax8.errors import UserError

MNIST = (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
"""Training images of each digit."""


def dataset_of(labels, num_classes=10):
    part = {"x": np.zeros((len(labels), 1), np.uint8), "y": np.asarray(labels, np.int32)}
    return Dataset(part, part, num_classes, (0.0,), (1.0,), "made_up").validate()


@pytest.fixture(scope="module")
def mnist():
    """The labels of MNIST's training set, in an order of our own."""
    return dataset_of(np.random.default_rng(0).permutation(np.repeat(np.arange(10), MNIST)))


def label_counts(split, dataset, num_clients, seed=0):
    """[K, classes], after making sure that the clients' rows together are all rows, each once."""
    owners = split(np.random.default_rng(seed), dataset, num_clients)
    data = FederatedData.from_owners({**dataset.train, "row": np.arange(len(owners))}, owners, num_clients)
    held = np.concatenate([data.client(c)["row"] for c in range(num_clients)])
    assert sorted(held.tolist()) == list(range(len(owners)))
    return data.label_counts(dataset.num_classes)


# First clients that hold nothing but the label, and how many rows of it the next one has: 5,923 and 5,851 in thousands.
@pytest.mark.parametrize(("label", "pure", "rest"), [(0, 5, 923), (8, 5, 851)])
def test_on_mnist_exactly_the_first_workers_hold_only_the_label(mnist, label, pure, rest):
    counts = label_counts(label_first(label), mnist, 60)
    assert (counts.sum(axis=1) == 1000).all()
    assert counts[:, label].tolist() == [1000] * pure + [rest] + [0] * (59 - pure)
    # Rows of the other labels are dealt at random: every worker without the label sees all nine.
    assert (np.delete(counts[pure + 1 :], label, axis=1) > 0).all()


@pytest.mark.parametrize("num_clients", [7, 60, 59_999])
@pytest.mark.parametrize(
    "split",
    [label_first(), sorted_share(), sorted_share(0.9999), iid()],
    ids=lambda given: getattr(given, "__qualname__", str(given)).split(".")[0],
)
def test_worker_sizes_differ_by_at_most_one(mnist, split, num_clients):
    sizes = np.bincount(split(np.random.default_rng(0), mnist, num_clients), minlength=num_clients)
    assert sizes.sum() == 60_000 and sizes.max() - sizes.min() <= 1 and sizes.min() >= 1


def test_sixty_percent_of_every_worker_are_a_stretch_of_the_sorted_rows(mnist):
    counts = label_counts(sorted_share(0.6), mnist, 60)
    # 600 of 1000 rows are of one class or of two that follow each other; the other 400 are about 40 of each class,
    # with a deviation of sqrt(400 * 0.1 * 0.9) = 6. Among 60 workers and 10 classes none is off by five of them.
    stretches = [np.flatnonzero(row > 40 + 5 * 6).tolist() for row in counts]
    assert all(held and held[-1] - held[0] < 2 for held in stretches)
    assert stretches == sorted(stretches)  # in the order of the labels
    assert stretches[0] == [0] and stretches[-1] == [9]
    for row, held in zip(counts, stretches, strict=True):
        others = np.delete(row, held)
        assert (np.abs(others - 40) <= 5 * 6 + 25).all()  # a class may begin with fewer than 25 rows of a stretch
        # What the classes of the stretch have above 40 each: the 600, give or take what the others' 400 vary by.
        assert abs(row[held].sum() - 40 * len(held) - 600) <= 5 * np.sqrt(2) * 6 + 25


def test_a_share_of_one_sorts_everything_and_of_nothing_sorts_nothing():
    dataset = dataset_of(np.tile(np.arange(4), 300), 4)
    assert label_counts(sorted_share(1.0), dataset, 8).tolist() == np.repeat(150 * np.eye(4, dtype=int), 2, 0).tolist()
    counts = label_counts(sorted_share(0.0), dataset, 4)
    # 300 of 1200 rows drawn without replacement: a class's count has deviation sqrt(300 * 3/16 * 3/4) = 6.5.
    assert np.abs(counts - 75).max() < 5 * 6.5


@pytest.mark.parametrize("num_clients", [3, 8, 11])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_numbers_of_sorted_rows_differ_by_at_most_one_too(share, num_clients):
    # Labels that are all different: what is sorted can be read off the order of labels over clients.
    dataset = dataset_of(np.random.default_rng(1).permutation(101), 101)
    drawn = np.random.default_rng(0).permutation(101)  # the split's own first draw
    owners = sorted_share(share)(np.random.default_rng(0), dataset, num_clients)
    chosen = drawn[: round(share * 101)]
    in_order = owners[chosen[np.argsort(dataset.train["y"][chosen])]]
    assert (np.diff(in_order) >= 0).all()
    for sizes in (np.bincount(in_order, minlength=num_clients), np.bincount(owners)):
        assert sizes.max() - sizes.min() <= 1


def test_rows_are_shuffled_first_so_that_the_order_of_a_file_does_not_matter():
    dataset = dataset_of(np.repeat([0, 1], 500), 2)  # stored by class
    # Cut as stored, the sorted half would be class 0 alone, and the other half class 1.
    counts = label_counts(sorted_share(0.5), dataset, 2)
    assert (counts > 50).all()
    first = label_first(1)(np.random.default_rng(0), dataset, 4)
    assert set(first[500:750].tolist()) == {0, 1}  # rows of the class that comes first, dealt to the first two


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: sorted_share(-0.1), "share is -0.1; it must be at least 0 and at most 1"),
        (lambda: sorted_share(60), "share is 60; it must be"),
        (lambda: sorted_share(float("nan")), "share is nan"),
        (lambda: label_first(-1), "label is -1; it must be a whole number, at least 0"),
        (lambda: label_first(0.5), "label is 0.5"),
    ],
)
def test_bad_hyperparameters_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_label_that_no_row_has_is_named(mnist):
    with pytest.raises(UserError, match="label is 10, but no row of made_up has it; labels are below 10"):
        label_first(10)(np.random.default_rng(0), mnist, 3)


@pytest.mark.parametrize(
    "split", [sorted_share(), label_first()], ids=lambda given: getattr(given, "__qualname__", str(given)).split(".")[0]
)
def test_rows_of_label_sequences_cannot_be_split_by_label(split):
    part = {"x": np.zeros((9, 4), np.int32), "y": np.zeros((9, 4), np.int32)}
    dataset = Dataset(part, part, 2, (0.0,), (1.0,), "text").validate()
    with pytest.raises(UserError, match=r"text has a label for each of 4 positions of a row.*use by_key"):
        split(np.random.default_rng(0), dataset, 3)
