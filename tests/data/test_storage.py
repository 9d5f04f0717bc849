"""Federated data in folders: what was saved comes back, unread until it is used, whole or not at all."""

import logging
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from fedjax8.data.federated import FederatedData, federate
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.partitions.iid import iid
from fedjax8.data.sources.mapped import mapped
from fedjax8.data.sources.synthetic import synthetic_clients
from fedjax8.data.storage import open_federated, save_clients, save_federated
from fedjax8.errors import UserError

K = 40


@pytest.fixture
def columns(rng):
    return {
        "x": rng.integers(0, 256, (300, 4, 2)).astype(np.uint8),
        "y": rng.integers(0, 5, 300).astype(np.int32),
        "weight": rng.standard_normal(300).astype(np.float32),
    }


@pytest.fixture
def owned(columns, rng):
    """Clients without a common row, rows in any order, some unused, some clients empty."""
    return FederatedData.from_owners(columns, rng.integers(-1, K - 3, 300), K)


@pytest.fixture
def opened(owned, tmp_path):
    save_federated(owned, tmp_path / "saved")
    return open_federated(tmp_path / "saved")


def assert_same_clients(a, b):
    assert a.num_clients == b.num_clients and set(a.columns) == set(b.columns)
    for client in range(a.num_clients):
        for name, column in a.client(client).items():
            other = b.client(client)[name]
            assert column.dtype == other.dtype
            np.testing.assert_array_equal(column, other)


def test_saved_clients_come_back_row_by_row(owned, opened):
    assert_same_clients(owned, opened)
    np.testing.assert_array_equal(opened.sizes, owned.sizes)
    np.testing.assert_array_equal(opened.label_counts(5), owned.label_counts(5))


def test_clients_that_share_rows_come_back_sharing_them(columns, tmp_path):
    shared = synthetic_clients(columns, 1000, sizes=(1, 30))
    save_federated(shared, tmp_path / "saved")
    again = open_federated(tmp_path / "saved")
    assert_same_clients(shared, again)
    assert len(again.columns["y"]) == 300


def test_data_are_written_in_blocks_of_bounded_size(owned, tmp_path, monkeypatch):
    monkeypatch.setattr("fedjax8.data.storage._BLOCK_BYTES", 100)  # of rows of 16 bytes
    save_federated(owned, tmp_path / "saved")
    again = open_federated(tmp_path / "saved")
    assert_same_clients(owned, again)
    save_federated(again, tmp_path / "copy")  # from disk, and without an order
    assert_same_clients(owned, open_federated(tmp_path / "copy"))


def test_clients_may_be_saved_as_they_come(owned, tmp_path):
    save_clients((owned.client(client) for client in range(K)), tmp_path / "deep" / "saved")
    assert_same_clients(owned, open_federated(tmp_path / "deep" / "saved"))


def test_open_data_are_mapped_read_only_and_without_an_order(opened):
    assert opened.order is None
    for array in (*opened.columns.values(), opened.starts, opened.sizes):
        assert isinstance(array, np.memmap) and not array.flags.writeable


def test_the_files_are_those_of_numpy(opened, tmp_path):
    np.testing.assert_array_equal(np.load(tmp_path / "saved" / "columns" / "x.npy"), opened.columns["x"])
    np.testing.assert_array_equal(np.load(tmp_path / "saved" / "sizes.npy"), opened.sizes)


def test_a_selection_of_open_data_is_open_data(owned, opened):
    chosen = np.array([30, 2, 7])
    assert_same_clients(owned.select(chosen), opened.select(chosen))


def resident_bytes():
    """Memory of this process, mapped files included; 0 where the system does not say."""
    if not Path("/proc/self/statm").exists():
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_ten_million_clients_are_opened_and_some_of_them_gathered_without_reading_the_rest(tmp_path):
    columns = {"x": np.arange(4000, dtype=np.float32).reshape(1000, 4), "y": np.zeros(1000, np.int32)}
    data = synthetic_clients(columns, 10_000_000, sizes=(1, 200))
    save_federated(data, tmp_path / "saved")
    ids = np.linspace(0, 9_999_999, 5).astype(int)
    expected, starts = data.gather(ids)
    del data
    before = resident_bytes()
    tracemalloc.start()
    opened = open_federated(tmp_path / "saved")
    found, found_starts = opened.gather(ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert opened.num_clients == 10_000_000
    np.testing.assert_array_equal(found["x"], expected["x"])
    np.testing.assert_array_equal(found_starts, starts)
    # 5 clients of at most 200 rows of 20 bytes, and objects; starts and sizes of ten million would be 120 MB.
    assert peak < 2**20
    # A page of a mapped file brings neighbors that lie in memory, up to 2 MiB: 5 starts, 5 sizes and the small columns.
    assert resident_bytes() - before < 32 * 2**20
    shutil.rmtree(tmp_path / "saved")  # 120 MB that pytest would keep


# Gathering


@pytest.mark.parametrize("kind", ["order", "opened", "order on disk"])
def test_gathered_rows_are_those_of_the_clients_one_after_another(kind, owned, opened, tmp_path, monkeypatch):
    data = opened if kind == "opened" else owned
    if kind == "order on disk":
        monkeypatch.setattr("fedjax8.data.federated._GATHER_BYTES", 100)
        data = FederatedData(dict(opened.columns), owned.order[: opened.num_positions] % 200, owned.starts, owned.sizes)
    rng = np.random.default_rng(0)
    for n in (0, 1, 7, 60):
        ids = rng.integers(0, K, n)
        found, starts = data.gather(ids)
        clients = [data.client(client) for client in ids]
        sizes = [len(client["y"]) for client in clients]
        assert starts.tolist() == (np.cumsum(sizes) - sizes).tolist() and starts.dtype == np.int64
        for name, column in data.columns.items():
            whole = np.concatenate([client[name] for client in clients]) if n else column[:0]
            np.testing.assert_array_equal(found[name], whole)
            assert found[name].dtype == column.dtype and type(found[name]) is np.ndarray


@pytest.mark.parametrize("kind", ["order", "opened"])
def test_rows_are_gathered_into_given_arrays(kind, owned, opened):
    data = owned if kind == "order" else opened
    out = {name: np.zeros((200, *column.shape[1:]), column.dtype) for name, column in data.columns.items()}
    for ids in (np.array([3, 1]), np.array([20, 3, 9])):
        found, _ = data.gather(ids, out)
        expected, _ = data.gather(ids)
        for name in data.columns:
            assert np.shares_memory(found[name], out[name])
            np.testing.assert_array_equal(found[name], expected[name])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: x[:3], r"out\['x'\] is uint8 \(3, 4, 2\); it must be uint8 \[\d+ or more, \*\(4, 2\)\]"),
        (lambda x: x.astype(np.int32), "is int32"),
        (lambda x: x[..., :1], r"is uint8 \(300, 4, 1\)"),
        (lambda x: None, "is missing"),
    ],
)
def test_unfit_arrays_to_gather_into_are_named(owned, columns, change, says):
    with pytest.raises(ValueError, match=says):
        owned.gather(np.arange(K), columns | {"x": change(columns["x"])})


@pytest.mark.parametrize("kind", ["order", "opened"])
def test_padding_is_a_client_without_rows(kind, owned, opened):
    data = owned if kind == "order" else opened
    starts, sizes = data.windows(np.array([5, K, -1, 6]))
    assert (starts.dtype, sizes.dtype) == (np.int64, np.int32)
    assert starts.tolist() == [data.starts[5], 0, 0, data.starts[6]]
    assert sizes.tolist() == [data.sizes[5], 0, 0, data.sizes[6]]
    found, new_starts = data.gather(np.array([5, K, -1, 6]))
    np.testing.assert_array_equal(found["y"], data.gather(np.array([5, 6]))[0]["y"])
    assert new_starts.tolist() == [0, data.sizes[5], data.sizes[5], data.sizes[5]]


def test_without_an_order_rows_are_where_they_lie(columns):
    data = FederatedData(columns, None, np.array([10, 0], np.int64), np.array([3, 300], np.int32))
    assert data.num_positions == 300 and data.rows(0).tolist() == [10, 11, 12]
    np.testing.assert_array_equal(data.client(1)["y"], columns["y"])
    assert data.rows_at(np.array([7, 2])).tolist() == [7, 2]
    with pytest.raises(UserError, match="a client's window leaves the 300 rows"):
        FederatedData(columns, None, np.array([10, 1], np.int64), np.array([3, 300], np.int32))


def test_where_rows_lie_is_looked_up_in_the_order(owned):
    assert owned.num_positions == len(owned.order)
    assert owned.rows_at(np.array([3, 0])).tolist() == [owned.order[3], owned.order[0]]


def test_a_window_that_leaves_the_rows_is_found_wherever_it_stands(columns, monkeypatch):
    monkeypatch.setattr("fedjax8.data.federated._CLIENTS_AT_ONCE", 7)
    starts, sizes = np.zeros(50, np.int64), np.full(50, 300, np.int32)
    assert FederatedData(columns, None, starts, sizes).num_examples == 50 * 300
    starts[40] = 1
    with pytest.raises(UserError, match="leaves the 300 rows"):
        FederatedData(columns, None, starts, sizes)
    assert FederatedData(columns, None, starts, sizes, checked=True).num_clients == 50  # taken at its word


# What goes wrong


def test_a_folder_that_holds_something_is_left_alone(owned, tmp_path):
    (tmp_path / "saved").mkdir()
    save_federated(owned, tmp_path / "saved")  # empty
    before = (tmp_path / "saved" / "federated.json").read_text()
    with pytest.raises(UserError, match="saved exists; choose another folder"):
        save_federated(owned, tmp_path / "saved")
    assert (tmp_path / "saved" / "federated.json").read_text() == before
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file exists"):
        save_clients([owned.client(0)], tmp_path / "file")


def test_an_interrupted_save_leaves_nothing(owned, tmp_path):
    def clients():
        yield owned.client(0)
        raise FileNotFoundError("users/1.txt")

    with pytest.raises(FileNotFoundError, match="users"):
        save_clients(clients(), tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("clients", "says"),
    [
        ([], "no clients given"),
        ([{}], "client 0: columns have lengths {}"),
        ([{"x": np.zeros(2), "y": np.zeros(3)}], "client 0: columns have lengths {'x': 2, 'y': 3}"),
        ([{"x": np.float32(1)}], "'x': None"),
        ([{"x": np.zeros(2)}, {"x": np.zeros(2, np.float32)}], "client 1 has columns .*float32.*, unlike"),
        ([{"x": np.zeros(2)}, {"x": np.zeros((2, 1))}], "client 1 has columns"),
        ([{"x": np.zeros(2)}, {"z": np.zeros(2)}], "client 1 has columns"),
        ([{"../x": np.zeros(2)}], "'../x' cannot be the name of a file"),
        ([{"x": np.array(["a"])}], "column x is <U1"),
    ],
)
def test_clients_that_cannot_be_saved_are_named(clients, says, tmp_path):
    with pytest.raises(UserError, match=says):
        save_clients(clients, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(owned, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_federated(owned, tmp_path / "file" / "saved")


def test_damaged_folders_are_named(opened, tmp_path):
    folder = tmp_path / "saved"

    def damaged(name, change):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(folder, tmp_path / "copy")
        change(tmp_path / "copy" / name)
        return tmp_path / "copy"

    def shorten(path):
        path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(UserError, match="does not hold federated data; write it with"):
        open_federated(tmp_path)
    with pytest.raises(UserError, match=r"x\.npy is missing or damaged"):
        open_federated(damaged("columns/x.npy", Path.unlink))
    with pytest.raises(UserError, match=r"sizes\.npy is missing or damaged"):
        open_federated(damaged("sizes.npy", shorten))
    with pytest.raises(UserError, match=r"starts.npy is int64 \(3,\), but int64 \(40,\) was written"):
        open_federated(damaged("starts.npy", lambda path: np.save(path, np.zeros(3, np.int64))))
    with pytest.raises(UserError, match="is of format 99, but 1 is needed"):
        open_federated(damaged("federated.json", lambda path: path.write_text('{"format": 99}')))


# The source


@pytest.fixture
def folder(columns, owned, tmp_path):
    save_federated(owned, tmp_path / "set" / "train")
    save_clients([{"x": columns["x"][:20], "y": columns["y"][:20]}], tmp_path / "set" / "test")
    return tmp_path


def test_a_folder_with_two_parts_is_a_data_set_with_natural_clients(folder, owned):
    dataset = mapped(str(folder), "set")
    assert dataset.validate() is dataset and dataset.name == "set" and dataset.num_classes == 5
    assert dataset.num_natural_clients == K and isinstance(dataset.train["x"], np.memmap)
    x = owned.columns["x"][owned.order] / 255.0
    np.testing.assert_allclose(dataset.mean, [x.mean()], rtol=1e-9)
    np.testing.assert_allclose(dataset.std, [x.std()], rtol=1e-9)
    assert_same_clients(owned, federate(dataset, by_key(), K))
    assert federate(dataset, iid(), 3).num_examples == owned.num_positions  # other splits work as for any set
    assert mapped(str(folder), "set", num_classes=9).num_classes == 9
    with pytest.raises(UserError, match=r"num_classes is 4, but .*set has labels up to 4; use at least 5"):
        mapped(str(folder), "set", num_classes=4)


def test_rows_are_measured_once(folder, monkeypatch):
    first = mapped(str(folder), "set")
    with monkeypatch.context() as patch:
        patch.setattr("fedjax8.data.sources.mapped.build_dataset", None)
        again = mapped(str(folder), "set")
    assert first[2:6] == again[2:6]
    save_clients([{"x": np.zeros((4, 4, 2), np.uint8), "y": np.arange(4, dtype=np.int32) * 3}], folder / "other")
    shutil.rmtree(folder / "set" / "train")
    (folder / "other").rename(folder / "set" / "train")
    changed = mapped(str(folder), "set")  # another part: measured again
    assert (changed.num_classes, changed.mean) == (10, (0.0,))


def test_a_folder_that_cannot_be_written_is_measured_each_time(folder, monkeypatch, caplog):
    def read_only(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fedjax8.data.sources.mapped.os.replace", read_only)
    with caplog.at_level(logging.INFO):
        assert mapped(str(folder), "set").num_classes == mapped(str(folder), "set").num_classes == 5
    assert "cannot be written" in caplog.text


def test_unfit_parts_of_a_mapped_set_are_named(columns, tmp_path):
    x, y = columns["x"], columns["y"]
    for name, part, says in (
        ("a", {"x": x}, "has columns x; it needs x and y"),
        ("b", {"x": x.astype(np.float64), "y": y}, "x is float64; write it as uint8 or float32 or int32"),
        ("c", {"x": x, "y": y.astype(np.uint8)}, "y is uint8; write it as int32"),
        ("d", {"x": x, "y": y - 1}, "labels run from -1"),
    ):
        for part_name in ("train", "test"):
            save_clients([part], tmp_path / name / part_name)
        with pytest.raises(UserError, match=says):
            mapped(str(tmp_path), name)
    with pytest.raises(UserError, match="does not hold federated data"):
        mapped(str(tmp_path), "nowhere")
    with pytest.raises(ValueError, match="folder is empty"):
        mapped(str(tmp_path))
