"""Replaced data are noticed, at little cost; the same data give the same text wherever they lie."""

import numpy as np
import pytest

from fedjax8.data import digest as module
from fedjax8.data.digest import array_digest, digest, without_floats
from fedjax8.data.federated import Dataset, FederatedData


@pytest.fixture
def made(rng):
    x, y = rng.integers(0, 255, (40, 3), np.uint8), rng.integers(0, 3, 40).astype(np.int32)
    dataset = Dataset({"x": x, "y": y}, {"x": x[:9] + 1, "y": y[:9]}, 3, (0.5,), (0.5,), "toy")
    return dataset, FederatedData.from_owners(dataset.train, np.arange(40) % 4, 4)


def test_any_change_of_small_arrays_is_noticed(made):
    dataset, clients = made
    whole = digest(dataset, clients)
    assert sorted(whole) == [
        "clients.order",
        "clients.sizes",
        "clients.starts",
        *(f"t{a}.{b}" for a in ("est", "rain") for b in "xy"),
    ]
    assert whole["train.x"].startswith("uint8 [40, 3] ")
    for part in ("train", "test"):
        for name in ("x", "y"):
            columns = {n: column.copy() for n, column in getattr(dataset, part).items()}
            columns[name].reshape(-1)[-1] ^= 1
            other = dataset._replace(**{part: columns})
            split = FederatedData(other.train, clients.order, clients.starts, clients.sizes)
            found = digest(other, split)
            assert [key for key in whole if found[key] != whole[key]] == [f"{part}.{name}"]
    other = digest(dataset, FederatedData.from_owners(dataset.train, np.arange(40) // 10, 4))
    assert [key for key in whole if other[key] != whole[key]] == ["clients.order"]


def test_shape_and_dtype_count_and_byte_order_and_layout_do_not(rng):
    array = rng.integers(0, 255, (6, 4), np.uint16)
    same = [array.astype(">u2"), np.asfortranarray(array), array.copy()]
    assert {array_digest(other) for other in same} == {array_digest(array)}
    others = [array.reshape(4, 6), array.view(np.int16), array.astype(np.uint32), array[::-1], array[:5]]
    assert len({array_digest(other) for other in [array, *others]}) == 6
    assert array_digest(np.zeros((0, 3), np.float32)).startswith("float32 [0, 3] ")


def test_of_large_and_mapped_arrays_some_rows_are_read(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(module, "WHOLE", 1000)
    array = rng.standard_normal((5000, 7)).astype(np.float32)
    array.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", np.float32, "r", shape=(5000, 7))
    assert array_digest(mapped) == array_digest(array)
    assert array_digest(array[rng.permutation(5000)]) != array_digest(array)
    ends = array.copy()
    ends[[0, -1]] += 1
    assert array_digest(ends) != array_digest(array)


def test_floats_may_be_left_out():
    parts = {"train.x": "float32 [5, 2] 12ab", "train.y": "int32 [5] 34cd"}
    assert without_floats(parts) == {"train.x": "float32 [5, 2]", "train.y": "int32 [5] 34cd"}
