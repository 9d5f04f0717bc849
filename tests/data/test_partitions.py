"""Every partition in the folder, found by itself, then what is special to each."""

import importlib
import inspect
import pkgutil
import time
import tracemalloc

import numpy as np
import pytest

import fedjax8.data.partitions
from fedjax8.data.federated import Dataset, FederatedData, Windows, federate
from fedjax8.data.heterogeneity import label_skew
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.partitions.dirichlet import dirichlet
from fedjax8.data.partitions.iid import iid
from fedjax8.data.partitions.quantity_skew import quantity_skew
from fedjax8.data.partitions.shards import shards
from fedjax8.data.partitions.windows import windows
from fedjax8.errors import UserError

NAMES = [m.name for m in pkgutil.iter_modules(fedjax8.data.partitions.__path__) if m.name[0] != "_"]
SHARING = ("windows",)  # whose clients share rows: they give windows instead of owners
MODULES = {name: importlib.import_module(f"fedjax8.data.partitions.{name}") for name in NAMES}
CASES = [
    pytest.param(getattr(module, name)(**settings), id=f"{name}{settings}")
    for name, module in MODULES.items()
    for settings in module.EXAMPLES
    if name not in SHARING
]
NUM_KEYS = 40


def dataset_of(labels, num_classes, owners=None):
    part = {"x": np.zeros((len(labels), 1), np.uint8), "y": np.asarray(labels, np.int32)}
    return Dataset(part, part, num_classes, (0.0,), (1.0,), "made_up", owners).validate()


@pytest.fixture(scope="module")
def dataset():
    """1234 rows, seven unequal classes, forty natural clients of unequal size with gaps in their numbers."""
    rng = np.random.default_rng(0)
    labels = rng.choice(7, 1234, p=np.arange(1, 8) / 28)
    keys = np.concatenate([np.arange(NUM_KEYS), rng.geometric(0.1, 1234 - NUM_KEYS) % NUM_KEYS])
    return dataset_of(labels, 7, (3 * rng.permutation(keys)).astype(np.int32))


def test_the_folder_is_not_empty():
    assert {"iid", "dirichlet", "shards", "by_key", "quantity_skew"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_hyperparameters_are_keyword_only_after_the_second_and_have_defaults(name):
    parameters = list(inspect.signature(getattr(MODULES[name], name)).parameters.values())
    assert all(p.kind is p.KEYWORD_ONLY for p in parameters[2:])
    assert all(p.default is not p.empty for p in parameters)


@pytest.mark.parametrize("num_clients", [1, 13, NUM_KEYS])
@pytest.mark.parametrize("split", CASES)
def test_every_row_has_one_owner_and_every_client_a_row(split, dataset, num_clients):
    owners = split(np.random.default_rng(0), dataset, num_clients)
    assert owners.shape == (1234,) and owners.dtype == np.int32
    assert owners.max() < num_clients and owners.min() >= -1
    assert np.array_equal(np.unique(owners[owners >= 0]), np.arange(num_clients))


@pytest.mark.parametrize("split", CASES)
def test_rows_are_conserved_up_to_the_unused_ones(split, dataset):
    owners = split(np.random.default_rng(0), dataset, 13)
    data = FederatedData.from_owners({"row": np.arange(1234)}, owners, 13)
    held = np.concatenate([data.client(c)["row"] for c in range(13)])
    assert sorted([*held.tolist(), *np.flatnonzero(owners == -1).tolist()]) == list(range(1234))


@pytest.mark.parametrize("split", CASES)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(split, dataset):
    first, again, other = (split(np.random.default_rng(seed), dataset, 13) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("split", CASES)
def test_impossible_numbers_of_clients_are_named(split, dataset):
    with pytest.raises(UserError, match="num_clients is 0"):
        split(np.random.default_rng(0), dataset, 0)
    with pytest.raises(UserError, match=r"1235.*(made_up has|need)"):
        split(np.random.default_rng(0), dataset, 1235)


@pytest.mark.parametrize("split", CASES)
def test_a_split_leaves_the_data_set_as_it_was(split, dataset):
    labels, owners = dataset.train["y"].copy(), dataset.owners.copy()
    split(np.random.default_rng(0), dataset, 13)
    np.testing.assert_array_equal(dataset.train["y"], labels)
    np.testing.assert_array_equal(dataset.owners, owners)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("by_key", *SHARING)])
def test_a_thousand_clients_of_sixty_thousand_rows_take_under_a_second(name):
    dataset = dataset_of(np.random.default_rng(0).integers(0, 10, 60_000), 10)
    split = getattr(MODULES[name], name)()
    begun = time.perf_counter()
    owners = split(np.random.default_rng(0), dataset, 1000)
    assert time.perf_counter() - begun < 1.0
    assert np.bincount(owners).shape == (1000,)


@pytest.mark.parametrize(
    "split", [iid(), dirichlet(), dirichlet(0.01), quantity_skew(0.0)], ids=["iid", "0.3", "0.01", "sigma0"]
)
def test_equal_sizes_differ_by_at_most_one_row(split, dataset):
    sizes = np.bincount(split(np.random.default_rng(0), dataset, 100))
    assert set(sizes.tolist()) == {12, 13} and sizes.sum() == 1234


def test_as_many_clients_as_rows_leave_one_row_each(dataset):
    for split in (iid(), dirichlet(), quantity_skew(), shards(1)):
        assert np.bincount(split(np.random.default_rng(0), dataset, 1234)).tolist() == [1] * 1234


def test_iid_rows_go_to_each_client_with_equal_probability(dataset):
    draws, clients = 400, 5
    owners = np.stack([iid()(np.random.default_rng(seed), dataset, clients) for seed in range(draws)])
    share = (owners == 2).mean(axis=0)
    # 400 draws for each of 1234 rows: standard error sqrt(0.2 * 0.8 / 400) = 0.02; five, for so many rows.
    assert np.abs(share - 0.2).max() < 5 * 0.02


def test_quantity_skew_follows_the_log_normal_law():
    dataset = dataset_of(np.zeros(1_000_000), 1)
    sizes = np.bincount(quantity_skew(1.5, min_size=7)(np.random.default_rng(0), dataset, 2000))
    assert sizes.min() >= 7 and sizes.sum() == 1_000_000
    spread = np.log(sizes - 7 + 0.5).std()  # undoes the guaranteed minimum; half a row against log 0
    # 2000 draws: standard error of a standard deviation 1.5 / sqrt(4000) = 0.024; four of them, and 0.03 for
    # rounding to whole rows (mean size is 500, median about 160).
    assert abs(spread - 1.5) < 4 * 0.024 + 0.03


def test_shards_give_each_client_few_classes():
    dataset = dataset_of(np.repeat(np.arange(10), 600), 10)
    owners = shards(2)(np.random.default_rng(0), dataset, 100)
    counts = FederatedData.from_owners(dataset.train, owners, 100).label_counts(10)
    assert (counts.sum(axis=1) == 60).all()
    # 200 shards of 30 rows divide the classes of 600 exactly: no shard straddles two of them.
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert set(np.unique(counts)) == {0, 30, 60}


def test_shards_take_rows_of_a_class_in_random_order():
    dataset = dataset_of(np.zeros(1000), 1)
    owners = shards(1)(np.random.default_rng(0), dataset, 2)
    assert 0 < (owners[:500] == owners[0]).sum() < 500


def test_by_key_with_all_clients_numbers_the_natural_ones_in_order(dataset):
    owners = by_key()(np.random.default_rng(0), dataset, NUM_KEYS)
    np.testing.assert_array_equal(owners * 3, dataset.owners)


def test_by_key_with_fewer_clients_keeps_whole_natural_clients(dataset):
    owners = by_key()(np.random.default_rng(0), dataset, 10)
    pairs = {(o, k) for o, k in zip(owners.tolist(), dataset.owners.tolist(), strict=True) if o >= 0}
    kept = [key for _, key in sorted(pairs)]
    assert len(kept) == 10 and kept == sorted(set(kept))
    assert not np.isin(dataset.owners[owners == -1], kept).any()


def test_by_key_needs_natural_clients_and_enough_of_them(dataset):
    with pytest.raises(UserError, match="no natural clients"):
        by_key()(np.random.default_rng(0), dataset._replace(owners=None), 3)
    with pytest.raises(UserError, match="has 40 natural clients"):
        by_key()(np.random.default_rng(0), dataset, 41)


@pytest.fixture
def with_windows(dataset):
    """The data set with nine natural clients of 1 to 9 rows as windows."""
    sizes = np.arange(1, 10, dtype=np.int32)
    return dataset._replace(owners=None, clients=Windows(None, np.cumsum(sizes) - sizes, sizes))


def test_by_key_takes_natural_clients_that_are_windows_as_they_are(with_windows):
    assert with_windows.num_natural_clients == 9
    assert by_key()(np.random.default_rng(0), with_windows, 9) is with_windows.clients
    clients = federate(with_windows, by_key(), 9)
    assert clients.rows(3).tolist() == [6, 7, 8, 9]


def test_by_key_with_fewer_clients_keeps_whole_windows(with_windows):
    kept = by_key()(np.random.default_rng(0), with_windows, 5)
    assert len(set(kept.sizes.tolist())) == 5 and kept.sizes.tolist() == sorted(kept.sizes)
    np.testing.assert_array_equal(kept.starts, with_windows.clients.starts[kept.sizes - 1])
    for number in (0, 10):
        with pytest.raises(UserError, match=f"num_clients is {number} but made_up has 9 natural clients"):
            by_key()(np.random.default_rng(0), with_windows, number)


@pytest.mark.parametrize("settings", MODULES["windows"].EXAMPLES)
@pytest.mark.parametrize("num_clients", [1, 13, 5000])
def test_windows_lie_inside_the_rows_and_have_the_asked_sizes(dataset, settings, num_clients):
    order, starts, sizes, _ = windows(**settings)(np.random.default_rng(0), dataset, num_clients)
    assert sorted(order.tolist()) == list(range(1234))
    assert len(starts) == len(sizes) == num_clients
    assert starts.min() >= 0 and (starts + sizes).max() <= 1234
    allowed = range(settings.get("smallest", 1), settings.get("largest", 200) + 1)
    assert set(sizes.tolist()) <= set(allowed)
    assert num_clients < 5000 or set(sizes.tolist()) == set(allowed)


def test_windows_depend_on_the_seed_alone(dataset):
    first, again, other = (federate(dataset, windows(), 50, seed) for seed in (1, 1, 2))
    for name in ("order", "starts", "sizes"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(getattr(first, name), getattr(other, name))


def test_windows_by_label_see_neighboring_classes_only(dataset):
    counts = federate(dataset, windows(1, 20, by_label=True), 300).label_counts(7)
    held = [np.flatnonzero(row) for row in counts]
    assert all(len(labels) == labels[-1] - labels[0] + 1 <= 2 for labels in held)  # the rarest class has 44 rows


def test_impossible_windows_are_named(dataset):
    with pytest.raises(UserError, match="sizes are 1 to 1235; they must run from at least 1 to at most 1234 rows"):
        windows(largest=1235)(np.random.default_rng(0), dataset, 3)
    with pytest.raises(UserError, match="num_clients is 0"):
        windows()(np.random.default_rng(0), dataset, 0)


def test_ten_million_clients_as_windows_keep_twelve_bytes_each(dataset):
    tracemalloc.start()
    clients = federate(dataset, windows(), 10_000_000)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert clients.num_clients == 10_000_000
    assert kept < 10_000_000 * 12 + 2**20
    # While they are drawn, besides: how far a start may go, as int32 and as the int64 that NumPy makes of it.
    assert peak < 10_000_000 * 26


def one_by_one_dirichlet(rng, available, concentration, num_clients):
    """[K, classes] counts of the balanced split, drawn a row at a time."""
    available, classes = np.array(available), len(available)
    priors = rng.dirichlet([concentration] * classes, size=num_clients)
    counts = np.zeros((num_clients, classes), int)
    for client in rng.permutation(np.repeat(np.arange(num_clients), sum(available) // num_clients)):
        mass = priors[client] * (available > 0)
        label = rng.choice(classes, p=mass / mass.sum())  # as drawing again until the class has rows left
        available[label] -= 1
        counts[client, label] += 1
    return counts


def test_balanced_dirichlet_has_the_law_of_the_one_by_one_process():
    # Classes of unequal size, so that some run out early: mean and spread of a client's share of each class
    # and its largest share must agree between 400 splits drawn in blocks and 400 drawn a row at a time.
    available, clients, draws = [6, 10, 32], 4, 400
    dataset = dataset_of(np.repeat([0, 1, 2], available), 3)
    expected = np.stack([one_by_one_dirichlet(np.random.default_rng(s), available, 0.5, clients) for s in range(draws)])
    split, found = dirichlet(0.5), []
    for seed in range(draws):
        owners = split(np.random.default_rng(10_000 + seed), dataset, clients)
        found.append(FederatedData.from_owners(dataset.train, owners, clients).label_counts(3))
    found = np.stack(found)
    np.testing.assert_array_equal(found.sum(axis=1), np.broadcast_to(available, (draws, 3)))
    for statistic in (
        lambda counts: (counts**2).sum(axis=(1, 2)),
        lambda counts: counts.max(axis=(1, 2)),
        lambda counts: (counts[:, :, 0] ** 2).sum(axis=1),
        lambda counts: (counts == 0).sum(axis=(1, 2)),
    ):
        a, b = statistic(expected), statistic(found)
        error = np.sqrt(a.var() / draws + b.var() / draws)
        assert abs(a.mean() - b.mean()) < 4 * error


def test_blocks_of_places_do_not_show_in_the_balanced_split(monkeypatch):
    # Three places at a time or all at once: same law. 300 splits each, four standard errors.
    dataset = dataset_of(np.repeat([0, 1, 2], [6, 10, 32]), 3)

    def squares():
        splits = (dirichlet(0.5)(np.random.default_rng(seed), dataset, 4) for seed in range(300))
        counts = [FederatedData.from_owners(dataset.train, s, 4).label_counts(3) for s in splits]
        return (np.stack(counts) ** 2).sum(axis=(1, 2))

    whole = squares()
    monkeypatch.setattr(MODULES["dirichlet"], "_PLACES_AT_ONCE", 3)
    blocks = squares()
    assert not np.array_equal(whole, blocks)
    assert abs(whole.mean() - blocks.mean()) < 4 * np.sqrt(whole.var() / 300 + blocks.var() / 300)


def test_the_balanced_split_uses_up_each_class_exactly_even_when_several_run_out_in_one_block():
    available, places = np.array([3, 1, 0, 5, 21]), np.arange(30) % 3
    priors = np.full((3, 5), 0.2)
    for seed in range(20):
        classes = MODULES["dirichlet"]._fill_places(np.random.default_rng(seed), places, priors, available)
        assert np.bincount(classes, minlength=5).tolist() == available.tolist()


@pytest.mark.parametrize("balanced", [True, False])
def test_smaller_concentration_means_stronger_label_skew(balanced):
    dataset = dataset_of(np.repeat(np.arange(10), 1000), 10)
    means = []
    for concentration in (0.1, 1.0, 1000.0):
        owners = dirichlet(concentration, balanced=balanced)(np.random.default_rng(0), dataset, 20)
        means.append(np.nanmean(label_skew(FederatedData.from_owners(dataset.train, owners, 20), 10).js))
    assert means[0] > 2 * means[1] > 4 * means[2]
    # Clients of 500 rows dealt at random show (10 - 1) / (8 * 500 * ln 2) = 0.003 bits.
    assert means[0] > 0.3 and means[2] < 0.006


def test_label_wise_proportions_have_the_variance_of_a_dirichlet():
    # A client's share of a class has mean 1 / K and variance (1/K)(1 - 1/K) / (K a + 1); 200 classes of 5000
    # rows.
    clients, concentration, classes = 5, 0.8, 200
    dataset = dataset_of(np.repeat(np.arange(classes), 5000), classes)
    owners = dirichlet(concentration, balanced=False)(np.random.default_rng(0), dataset, clients)
    shares = FederatedData.from_owners(dataset.train, owners, clients).label_counts(classes) / 5000
    expected = (1 / clients) * (1 - 1 / clients) / (clients * concentration + 1)
    # 200 independent classes; squared deviations of a share vary by about 1.5 times their mean, and the five
    # clients of a class add little: 1.5 / sqrt(200) = 0.11 at most; three of them allowed.
    assert abs(((shares - 1 / clients) ** 2).mean() / expected - 1) < 0.33


def test_a_vanishing_concentration_still_uses_every_row(dataset):
    for concentration in (1e-3, 1e-300):
        owners = dirichlet(concentration)(np.random.default_rng(0), dataset, 100)
        assert set(np.bincount(owners).tolist()) == {12, 13}


def test_classes_without_rows_are_allowed():
    dataset = dataset_of(np.repeat([1, 4], 50), 6)
    for balanced in (True, False):
        owners = dirichlet(5.0, balanced=balanced)(np.random.default_rng(0), dataset, 5)
        assert np.bincount(owners, minlength=5).sum() == 100


def test_label_wise_minimum_size_holds_or_is_named_as_impossible(dataset):
    sizes = np.bincount(dirichlet(0.5, balanced=False, min_size=20)(np.random.default_rng(0), dataset, 13))
    assert sizes.min() >= 20
    with pytest.raises(UserError, match=r"300 draws; use balanced=True"):
        dirichlet(0.01, balanced=False, min_size=20)(np.random.default_rng(0), dataset, 40)


@pytest.mark.parametrize(
    "split", [dirichlet(min_size=20), quantity_skew(min_size=20)], ids=["dirichlet", "quantity_skew"]
)
def test_a_minimum_size_beyond_the_rows_is_named(split, dataset):
    with pytest.raises(UserError, match="100 clients with at least 20 rows each need 2000 rows"):
        split(np.random.default_rng(0), dataset, 100)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: dirichlet(0.0), "concentration is 0.0"),
        (lambda: dirichlet(float("nan")), "concentration is nan"),
        (lambda: dirichlet(min_size=0), "min_size is 0"),
        (lambda: quantity_skew(-1.0), "sigma is -1.0"),
        (lambda: quantity_skew(min_size=0), "min_size is 0"),
        (lambda: windows(0), "sizes are 0 to 200"),
        (lambda: windows(3, 2), "sizes are 3 to 2"),
        (lambda: shards(0), "shards_per_client is 0"),
        (lambda: shards(1.5), "shards_per_client is 1.5"),
    ],
)
def test_bad_hyperparameters_are_named(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_rows_of_label_sequences_are_split_by_anything_but_their_labels():
    part = {"x": np.zeros((9, 4), np.int32), "y": np.zeros((9, 4), np.int32)}
    dataset = Dataset(part, part, 2, (0.0,), (1.0,), "text", np.arange(9, dtype=np.int32) % 3).validate()
    for split in (by_key(), iid(), quantity_skew()):
        assert set(split(np.random.default_rng(0), dataset, 3).tolist()) == {0, 1, 2}
    for split in (dirichlet(), dirichlet(balanced=False), shards(1)):
        with pytest.raises(UserError, match=r"text has a label for each of 4 positions of a row.*use by_key"):
            split(np.random.default_rng(0), dataset, 3)
