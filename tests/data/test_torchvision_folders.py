"""Folders as torchvision leaves them: raw idx files, and CIFAR's pickles, of which none is run."""

import os
import pickle
import struct
import tracemalloc

import numpy as np
import pytest

from fedjax8.data.sources.cifar10 import cifar10
from fedjax8.data.sources.cifar100 import cifar100
from fedjax8.data.sources.fashion_mnist import fashion_mnist
from fedjax8.data.sources.mnist import mnist
from fedjax8.errors import UserError
from fedjax8.readers.pickled import read_cifar_pickles

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch):
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)


@pytest.mark.parametrize(("factory", "folder"), [(mnist, "MNIST"), (fashion_mnist, "FashionMNIST")])
@pytest.mark.parametrize("above", ["", "own"])
def test_raw_idx_files_are_found_in_torchvisions_folder(tmp_path, factory, folder, above):
    raw = tmp_path / (factory.__name__ if above else "") / folder / "raw"
    raw.mkdir(parents=True)
    made = {part: (RNG.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10) for part, n in
            (("train", 11), ("t10k", 10))}  # fmt: skip
    for part, pair in made.items():
        for kind, array in zip(("images", "labels"), pair, strict=True):
            head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            (raw / f"{part}-{kind}-idx{array.ndim}-ubyte").write_bytes(head + array.tobytes())
    dataset = factory(str(tmp_path))
    np.testing.assert_array_equal(dataset.train["x"][..., 0], made["train"][0])
    np.testing.assert_array_equal(dataset.test["y"], made["t10k"][1])


def written(rows, classes, label, text_keys):
    """The dict of one file, with images in planes."""
    x, y = RNG.integers(0, 256, (rows, 3072), np.uint8), RNG.integers(0, classes, rows).tolist()
    named = {"data": x, label: y, "batch_label": "some batch", "filenames": ["a.png"] * rows}
    return {k if text_keys else k.encode(): v for k, v in named.items()}, x, y


SETS = [
    (cifar10, 10, "cifar-10-batches-py", [f"data_batch_{i}" for i in (1, 2, 3, 4, 5)], "test_batch", "labels"),
    (cifar100, 100, "cifar-100-python", ["train"], "test", "fine_labels"),
]


@pytest.mark.parametrize(("factory", "classes", "folder", "train", "test", "label"), SETS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_the_python_version_of_cifar_is_read_in_any_protocol(
    tmp_path, factory, classes, folder, train, test, label, protocol
):
    (tmp_path / folder).mkdir()
    expected = []
    for name in [*train, test]:
        content, x, y = written(4, classes, label, text_keys=protocol != 2)
        (tmp_path / folder / name).write_bytes(pickle.dumps(content, protocol))
        expected.append((x, y))
    dataset = factory(str(tmp_path))
    planes = np.concatenate([x for x, _ in expected[:-1]])
    # Row r has pixel (i, j) of channel c at 1024 c + 32 i + j.
    np.testing.assert_array_equal(dataset.train["x"][:, 3, 17, 1], planes[:, 1024 + 32 * 3 + 17])
    np.testing.assert_array_equal(dataset.test["x"].transpose(0, 3, 1, 2).reshape(-1, 3072), expected[-1][0])
    assert dataset.train["y"].tolist() == [n for _, y in expected[:-1] for n in y]


def test_a_pickle_of_python_2_is_read(tmp_path):
    """As the official files are: byte strings by SHORT_BINSTRING and BINSTRING, NumPy's old home, protocol 2."""
    x = RNG.integers(0, 256, (2, 3072), np.uint8)
    text = lambda s: b"U" + bytes([len(s)]) + s
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n" + b"cnumpy\nndarray\n" + b"K\x00\x85" + text(b"b") + b"\x87R"
        b"(K\x01K\x02M\x00\x0c\x86" + b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89" + b"T" + struct.pack("<i", x.size) + x.tobytes() + b"tb"
    )  # fmt: skip
    stream = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x03K\x09e" + b"u."
    (tmp_path / "f").write_bytes(stream)
    images, labels = read_cifar_pickles(tmp_path, ["f"], "labels")
    assert labels.tolist() == [3, 9]
    np.testing.assert_array_equal(images.transpose(0, 3, 1, 2).reshape(2, -1), x)


class Runs:
    def __reduce__(self):
        return os.mkdir, ("pickles-were-run",)


GOOD = {"data": np.zeros((1, 3072), np.uint8), "labels": [1]}
HUGE = (
    b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    + b"\x85U\x01b\x87R."
)  # fmt: skip
MEMO = b"\x80\x02K\x01r" + struct.pack("<I", 1 << 31) + b"."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(GOOD | {"more": Runs()}), "it names .*mkdir, which is not read"),
        (pickle.dumps(GOOD | {"more": np.float64(1)}), "it names numpy.*scalar"),
        (pickle.dumps(GOOD | {"data": np.zeros((1, 3072), np.int16)}), "not of uint8"),
        (pickle.dumps(GOOD | {"data": np.zeros((1, 3072), object)}), "not of uint8"),
        (pickle.dumps(GOOD | {"labels": [300]}), "not a list of 1 classes"),
        (pickle.dumps(GOOD | {"labels": [True]}), "not a list of 1 classes"),
        (pickle.dumps(GOOD | {"data": np.zeros((1, 3), np.uint8)}), "is no uint8 array"),
        (pickle.dumps([1, 2]), "holds no dict"),
        (HUGE, "holds no dict"),
        (MEMO, "holds no dict"),
        (b"", "not a file of CIFAR"),
        (b"\x80\x02" + b"(" * 1000, "not a file of CIFAR"),
    ],
    ids=range(12),
)  # fmt: skip
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, monkeypatch, content, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError, match=says):
        read_cifar_pickles(tmp_path, ["f"], "labels")
    assert tracemalloc.get_traced_memory()[1] < 1 << 22
    tracemalloc.stop()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f"]
