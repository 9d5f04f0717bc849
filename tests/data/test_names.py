"""Clients keep the ids that the data gives them: through splits, validation, held-out rows and folders on disk."""

import numpy as np
import pytest

from fedjax8.data.federated import Dataset, FederatedData, federate
from fedjax8.data.held_out import held_out
from fedjax8.data.names import names_after_split, numbered, packed, unpacked
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.partitions.iid import iid
from fedjax8.data.sources.mapped import mapped
from fedjax8.data.sources.npz import npz
from fedjax8.data.storage import open_federated, save_clients, save_federated
from fedjax8.data.validation import validation_part
from fedjax8.errors import UserError

IDS = np.array(["zoe", "ada", "bob", "ada", "zoe", "ada", "eve", "eve"])
TEST_IDS = np.array(["bob", "zoe"])


def named_dataset():
    numbers, names = numbered(np.concatenate([IDS, TEST_IDS]), "toy")
    x, y = np.arange(10, dtype=np.float32)[:, None], np.arange(10, dtype=np.int32) % 2
    train, test = {"x": x[:8], "y": y[:8]}, {"x": x[8:], "y": y[8:]}
    data = Dataset(train, test, 2, (0.0,), (1.0,), "toy", numbers[:8], numbers[8:], client_names=names)
    return data.validate()


def test_ids_of_any_kind_become_numbers_in_their_order():
    numbers, names = numbered(np.array([30, 4, 30, 100]), "t")
    assert numbers.tolist() == [1, 0, 1, 2] and unpacked(names) == ["4", "30", "100"]
    numbers, names = numbered(IDS, "t")
    assert unpacked(names) == ["ada", "bob", "eve", "zoe"] and numbers[0] == 3
    assert unpacked(packed(["Zoë", "名"], "t")) == ["Zoë", "名"]


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        (np.array([1.0, np.nan]), "row 1 has NaN"),
        (np.array(["a", ""]), "is empty"),
        (np.array(["a", "b" * 300]), "at most 256 bytes"),
        (np.array(["a", "b\0c"]), "without NUL"),
        (np.array([1, "a", None], object), "several kinds"),
    ],
)
def test_ids_that_cannot_be_names_are_refused(ids, says):
    with pytest.raises(UserError, match=says):
        numbered(ids, "t")


def test_two_ids_that_are_written_alike_are_refused():
    with pytest.raises(UserError, match="'1' is there twice"):
        packed([1, "1"], "t")


def test_names_follow_the_natural_clients_through_a_split():
    clients = federate(named_dataset(), by_key(), 4)
    assert clients.named(np.arange(4)) == ["ada", "bob", "eve", "zoe"]
    assert clients.client(3)["x"].ravel().tolist() == [0.0, 4.0]  # zoe's rows
    some = federate(named_dataset(), by_key(), 2, seed=1)
    for number, name in enumerate(some.named(np.arange(2))):
        assert set(IDS[some.rows(number)]) == {name}
    assert clients.select(np.array([2, 0])).named(np.arange(2)) == ["eve", "ada"]


def test_clients_of_mixed_rows_have_numbers_for_names():
    clients = federate(named_dataset(), iid(), 2)
    assert clients.names is None and clients.named(np.array([1])) == ["1"]
    names, natural = packed(["a", "b"], "t"), np.array([0, 0, 1])
    assert names_after_split(names, natural, np.array([0, 1, 1]), 2) is None  # a in two clients, b with it
    assert names_after_split(names, natural, np.array([0, 0, 0]), 1) is None  # both in one
    assert unpacked(names_after_split(names, natural, np.array([-1, -1, 0]), 1)) == ["b"]


def test_validation_and_held_out_rows_keep_the_names():
    data = named_dataset()
    clients = federate(data, by_key(), 4)
    held = held_out(data, clients).clients
    assert held.named(np.arange(4)) == ["ada", "bob", "eve", "zoe"] and held.sizes.tolist() == [0, 1, 0, 1]
    left = validation_part(clients, 0.5, "clients", seed=2).clients
    for number, name in enumerate(left.named(np.arange(left.num_clients))):
        assert set(IDS[left.rows(number)]) == {name}


def test_names_are_kept_in_folders(tmp_path):
    clients = federate(named_dataset(), by_key(), 4)
    save_federated(clients, tmp_path / "train")
    kept = open_federated(tmp_path / "train")
    assert isinstance(kept.names, np.memmap) and kept.named(np.arange(4)) == ["ada", "bob", "eve", "zoe"]
    rows = [{"x": np.ones((1, 1), np.float32), "y": np.zeros(1, np.int32)}]
    save_clients(rows, tmp_path / "test", names=["bob"])
    split = federate(mapped(str(tmp_path), "."), by_key(), 2, seed=0)
    for number, name in enumerate(split.named(np.arange(2))):
        assert set(IDS[split.client(number)["x"].ravel().astype(int)]) == {name}
    with pytest.raises(UserError, match="2 names for 1 clients"):
        save_clients(rows, tmp_path / "other", names=["a", "b"])
    assert not (tmp_path / "other").exists()
    (tmp_path / "train" / "names.npy").unlink()
    with pytest.raises(UserError, match=r"names\.npy is missing"):
        open_federated(tmp_path / "train")


def test_names_of_another_form_are_refused():
    with pytest.raises(UserError, match="must be bytes"):
        FederatedData.from_owners({"y": np.zeros(2)}, np.array([0, 1]), 2, names=np.array(["a", "b"]))


def test_test_rows_in_a_folder_are_those_of_the_client_with_the_same_name(tmp_path):
    def rows(*values):
        return {"x": np.float32(values)[:, None], "y": np.zeros(len(values), np.int32)}

    save_clients([rows(1, 2), rows(3), rows(4, 5)], tmp_path / "train", names=["zoe", "ada", "bob"])
    save_clients([rows(10), rows(11, 12)], tmp_path / "test", names=["bob", "zoe"])
    data = mapped(str(tmp_path), ".")
    found = held_out(data, federate(data, by_key(), 3))
    assert found.kind == "natural" and found.clients.named(np.arange(3)) == ["zoe", "ada", "bob"]
    assert [found.clients.client(k)["x"].ravel().tolist() for k in range(3)] == [[11, 12], [], [10]]
    mixed = held_out(data, federate(data, iid(), 2))  # clients of several natural ones have no name
    assert mixed.kind == "dealt"


def test_texts_that_name_clients_in_an_npz_file_are_kept(tmp_path):
    x, y = np.zeros((3, 2), np.float32), np.arange(3) % 2
    who = {"client_train": np.array(["b", "a", "b"]), "client_test": np.array(["a", "a", "c"])}
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, **who)
    data = npz(str(tmp_path), "own")
    assert unpacked(data.client_names) == ["a", "b", "c"] and data.owners.tolist() == [1, 0, 1]
    assert data.test_owners.tolist() == [0, 0, 2]
