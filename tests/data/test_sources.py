"""Sources: every file in the folder, made-up data directories, and real data where `$FEDJAX8_DATA` has it."""

import gzip
import importlib
import inspect
import io
import os
import pkgutil
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest

import fedjax8.data.sources
from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset, channel_stats
from fedjax8.data.sources.cifar10 import cifar10
from fedjax8.data.sources.cifar100 import cifar100
from fedjax8.data.sources.fashion_mnist import fashion_mnist
from fedjax8.data.sources.mnist import mnist
from fedjax8.data.sources.npz import npz
from fedjax8.errors import UserError

REAL_DATA = os.environ.get("FEDJAX8_DATA")
NAMES = [m.name for m in pkgutil.iter_modules(fedjax8.data.sources.__path__) if m.name[0] != "_"]
FACTORIES = {n: getattr(importlib.import_module(f"fedjax8.data.sources.{n}"), n) for n in NAMES}
CASES = [
    pytest.param(name, settings, id=f"{name}{settings}")
    for name in NAMES
    for settings in importlib.import_module(f"fedjax8.data.sources.{name}").EXAMPLES
]
RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch):
    """Made-up data directories must not be mixed with the real one."""
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)


def real_data(name):
    if not REAL_DATA:
        pytest.skip("$FEDJAX8_DATA is not set")
    folders = (name, "speech_commands_v0.02") if name == "speech_commands" else (name,)
    if not ((Path(REAL_DATA) / f"{name}.npz").exists() or any((Path(REAL_DATA) / f).is_dir() for f in folders)):
        pytest.skip(f"$FEDJAX8_DATA has no {name}")
    return REAL_DATA


def test_the_folder_is_not_empty():
    known = {"digits", "synthetic", "mnist", "fashion_mnist", "cifar10", "cifar100", "npz", "speech_commands"}
    assert known | {"shakespeare", "synthetic_text"} <= set(NAMES)


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_every_source_gives_a_valid_dataset_of_integers_below_num_classes(name, settings):
    reads_files = "data_dir" in inspect.signature(FACTORIES[name]).parameters
    where = {"data_dir": real_data(settings.get("file", name))} if reads_files else {}
    dataset = FACTORIES[name](**where, **settings)
    assert dataset.validate() is dataset and isinstance(dataset, Dataset)
    for part in (dataset.train, dataset.test):
        assert part["x"].dtype in (np.uint8, np.float32, np.int32) and part["y"].dtype == np.int32
    if dataset.train["y"].ndim == 1:  # a vocabulary may have symbols that a text does not
        assert len(np.unique(dataset.train["y"])) == dataset.num_classes
    channels = dataset.train["x"].shape[-1] if dataset.train["x"].ndim == 4 else 1
    assert len(dataset.mean) == len(dataset.std) == channels
    # Stated moments are rounded to three or four digits.
    moments = channel_stats(dataset.train["x"]) if settings.get("standardize", True) else ((0.0,), (1.0,))
    np.testing.assert_allclose(dataset.mean, moments[0], atol=6e-4)
    np.testing.assert_allclose(dataset.std, moments[1], atol=6e-4)


@pytest.mark.parametrize("name", NAMES)
def test_a_data_directory_comes_first_among_the_arguments_and_all_have_defaults(name):
    parameters = inspect.signature(FACTORIES[name]).parameters
    assert "data_dir" not in parameters or next(iter(parameters)) == "data_dir"
    assert all(p.default is not p.empty for p in parameters.values())


# Made-up data directories


def arrays(shape, classes=10, train=12, test=5, **extra):
    made = {}
    for part, rows in (("train", train), ("test", test)):
        made[f"x_{part}"] = RNG.integers(0, 256, (rows, *shape)).astype(np.uint8)
        made[f"y_{part}"] = np.arange(rows, dtype=np.uint8) % classes
    return made | extra


def write_idx(folder, made, separator="-", suffix=".gz"):
    folder.mkdir(parents=True, exist_ok=True)
    for key, stem in (("train", "train"), ("test", "t10k")):
        for kind, array in (("images", made[f"x_{key}"]), ("labels", made[f"y_{key}"])):
            content = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
            name = f"{stem}-{kind}{separator}idx{array.ndim}-ubyte{suffix}"
            (folder / name).write_bytes(gzip.compress(content) if suffix else content)


def assert_holds(dataset, made, row_shape):
    for part, columns in (("train", dataset.train), ("test", dataset.test)):
        np.testing.assert_array_equal(columns["x"], made[f"x_{part}"].reshape(-1, *row_shape))
        np.testing.assert_array_equal(columns["y"], made[f"y_{part}"])


@pytest.mark.parametrize("folder", ["", "mnist"])
@pytest.mark.parametrize("separator", "-.")
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_reads_idx_files_wherever_and_however_they_lie(tmp_path, folder, separator, suffix):
    made = arrays((28, 28))
    write_idx(tmp_path / folder, made, separator, suffix)
    dataset = mnist(str(tmp_path))
    assert_holds(dataset, made, (28, 28, 1))
    assert (dataset.name, dataset.mean, dataset.std) == ("mnist", (0.1307,), (0.3081,))
    plain = mnist(str(tmp_path), standardize=False)
    assert_holds(plain, made, (28, 28, 1))
    assert (plain.mean, plain.std) == ((0.0,), (1.0,))


def test_fashion_mnist_has_its_own_folder_and_moments(tmp_path):
    made = arrays((28, 28)), arrays((28, 28))
    write_idx(tmp_path / "mnist", made[0])
    write_idx(tmp_path / "fashion_mnist", made[1])
    assert_holds(mnist(str(tmp_path)), made[0], (28, 28, 1))
    assert_holds(fashion_mnist(str(tmp_path)), made[1], (28, 28, 1))
    assert (fashion_mnist(str(tmp_path)).mean, fashion_mnist(str(tmp_path)).std) == ((0.286,), (0.353,))


def test_files_of_the_other_set_with_the_same_names_are_recognized(tmp_path):
    made = arrays((28, 28))
    made["y_train"][:10] = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    write_idx(tmp_path, made)
    assert fashion_mnist(str(tmp_path)).name == "fashion_mnist"
    with pytest.raises(UserError, match="holds the files of fashion_mnist, not of mnist"):
        mnist(str(tmp_path))


@pytest.mark.parametrize("path", ["mnist.npz", "mnist/mnist.npz"])
@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 1)])
def test_an_npz_file_goes_before_raw_files(tmp_path, path, shape):
    write_idx(tmp_path, arrays((28, 28)))
    made = arrays(shape)
    (tmp_path / path).parent.mkdir(exist_ok=True)
    np.savez(tmp_path / path, **made)
    assert_holds(mnist(str(tmp_path)), made, (28, 28, 1))


def cifar_files(made, label_bytes, batches):
    """File name -> bytes of the binary version, with a coarse label of 7 in front where there are two."""
    files = {}
    for part, names in batches.items():
        rows = np.concatenate(
            [
                np.full((len(made[f"y_{part}"]), label_bytes - 1), 7, np.uint8),
                made[f"y_{part}"][:, None],
                made[f"x_{part}"].transpose(0, 3, 1, 2).reshape(-1, 3072),
            ],
            axis=1,
        )
        files |= {n: block.tobytes() for n, block in zip(names, np.array_split(rows, len(names)), strict=True)}
    return files


CIFAR = {
    "cifar10": (
        cifar10,
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        1,
        {"train": [f"data_batch_{i}.bin" for i in (1, 2, 3, 4, 5)], "test": ["test_batch.bin"]},
    ),
    "cifar100": (
        cifar100,
        "cifar-100-binary",
        "cifar-100-binary.tar.gz",
        2,
        {"train": ["train.bin"], "test": ["test.bin"]},
    ),
}


@pytest.mark.parametrize("name", CIFAR)
@pytest.mark.parametrize("place", ["folder", "own folder", "own", "direct", "archive", "own archive"])
def test_cifar_reads_binary_files_and_archives_wherever_they_lie(tmp_path, name, place):
    factory, folder, archive, label_bytes, batches = CIFAR[name]
    made = arrays((32, 32, 3), int(name.removeprefix("cifar")))
    files = cifar_files(made, label_bytes, batches)
    base = tmp_path / name if place.startswith("own") else tmp_path
    base = base / folder if place.endswith("folder") else base
    base.mkdir(parents=True, exist_ok=True)
    if place.endswith("archive"):
        with tarfile.open(base / archive, "w:gz") as tar:
            for file, content in files.items():
                info = tarfile.TarInfo(f"{folder}/{file}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        for file, content in files.items():
            (base / file).write_bytes(content)
    dataset = factory(str(tmp_path))
    assert_holds(dataset, made, (32, 32, 3))
    assert dataset.num_classes == int(name.removeprefix("cifar"))


def test_npz_reads_any_set_with_natural_clients_and_measures_it(tmp_path, monkeypatch):
    owners = np.array([5, 0, 5, 2, 2, 5, 0, 0, 2, 5, 5, 5])
    extra = {"client_train": owners, "client_test": np.array([0, 2, 5, 5, 9])}
    made = arrays((4, 3, 2), 3, y_train=np.arange(12)[:, None] % 3, **extra)
    np.savez(tmp_path / "mine.npz", **made)
    monkeypatch.setenv("FEDJAX8_DATA", str(tmp_path))
    dataset = npz(file="mine")
    assert_holds(dataset, made | {"y_train": np.arange(12) % 3}, (4, 3, 2))
    assert dataset.num_classes == 3 and dataset.num_natural_clients == 3
    np.testing.assert_array_equal(dataset.owners, owners)
    np.testing.assert_array_equal(dataset.test_owners, extra["client_test"])
    scaled = made["x_train"] / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, scaled.std(axis=(0, 1, 2)), rtol=1e-9)
    assert npz(str(tmp_path), "mine.npz", num_classes=7).num_classes == 7


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"y_train": np.arange(11)}, r"y_train is int64 \(11,\); it must be \[12\] integers"),
        ({"y_train": np.zeros(12)}, "y_train is float64"),
        ({"y_test": np.full(5, 3)}, "test labels run from 3 to 3; 3 classes"),
        ({"y_test": np.full(5, -1)}, "test labels run from -1"),
        ({"y_test": np.full(5, 2**32)}, "beyond 32-bit"),
        ({"x_train": np.array(["a"] * 12)}, "of numbers"),
        ({"x_train": np.full((12, 4), np.nan)}, "NaN"),
        ({"x_test": np.zeros((5, 5), np.uint8)}, "must agree"),
        ({"x_train": np.zeros((0, 4)), "y_train": np.zeros(0, int)}, "train is empty"),
        ({"client_train": np.zeros(3, int)}, "client_train is int64"),
        ({"client_train": np.full(12, -1)}, "train owners"),
    ],
)
def test_arrays_that_do_not_fit_are_named_with_their_file(tmp_path, changes, says):
    np.savez(tmp_path / "mine.npz", **(arrays((4,), 3) | changes))
    with pytest.raises(UserError, match=says) as raised:
        npz(str(tmp_path), "mine", num_classes=3)
    assert str(raised.value).startswith(f"{tmp_path / 'mine.npz'}: ")


def test_npz_needs_a_name():
    with pytest.raises(ValueError, match="file is empty"):
        npz()


def test_known_sets_refuse_rows_of_another_shape_and_too_large_labels(tmp_path):
    np.savez(tmp_path / "mnist.npz", **arrays((32, 32)))
    with pytest.raises(UserError, match=r"\(32, 32\); they must be \(28, 28, 1\)"):
        mnist(str(tmp_path))
    np.savez(tmp_path / "mnist.npz", **arrays((28, 28), 11))
    with pytest.raises(UserError, match="0 to 10; 10 classes allow 0 to 9"):
        mnist(str(tmp_path))


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(tmp_path, name):
    with pytest.raises(UserError) as raised:
        FACTORIES[name](str(tmp_path))
    message = str(raised.value)
    assert "\n" not in message
    for part in (str(tmp_path), str(tmp_path / name), f"{name}.npz", "--data_dir", "$FEDJAX8_DATA"):
        assert part in message
    assert f"python -m fedjax8.fetch {name}" in message
    with pytest.raises(UserError, match=r"needs a data directory.*FEDJAX8_DATA.*fedjax8.fetch"):
        FACTORIES[name]()
    with pytest.raises(UserError, match="not a directory"):
        FACTORIES[name](str(tmp_path / "elsewhere"))


def test_an_incomplete_set_says_what_is_lacking(tmp_path):
    write_idx(tmp_path / "mnist", arrays((28, 28)))
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match="mnist lacks t10k-labels-idx1-ubyte"):
        mnist(str(tmp_path))
    (tmp_path / "train.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"lacks test\.bin"):
        cifar100(str(tmp_path))
    with pytest.raises(UserError, match=r"mine not found: .*mine\.npz") as raised:
        npz(str(tmp_path), "mine")
    assert "fedjax8.fetch" not in str(raised.value)


# Moments


@pytest.mark.parametrize("shape", [(5000, 3), (5000, 2, 2), (4500, 2, 2, 3)])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_agree_with_numpy_over_several_chunks(shape, offset):
    x = (RNG.standard_normal(shape) + offset).astype(np.float32)
    mean, std = channel_stats(x)
    axes = (0, 1, 2) if len(shape) == 4 else None
    # float64 sums of float32 values, shifted by a value from the data: no cancellation to speak of
    np.testing.assert_allclose(mean, np.atleast_1d(x.mean(axis=axes, dtype=np.float64)), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(std, np.atleast_1d(x.std(axis=axes, dtype=np.float64)), rtol=1e-9)


def test_constant_channels_and_symbols_are_not_scaled():
    x = np.zeros((10, 2, 2, 2), np.uint8)
    x[..., 1] = 51
    assert channel_stats(x) == ((0.0, 0.2), (1.0, 1.0))
    assert channel_stats(np.arange(10, dtype=np.int32)) == ((0.0,), (1.0,))


@pytest.mark.parametrize(("given", "kept"), [(np.float64, np.float32), (np.int64, np.int32), (np.uint8, np.uint8)])
def test_inputs_become_one_of_three_dtypes(given, kept):
    made = {"x_train": np.ones((4, 2), given), "x_test": np.ones((1, 2), given)}
    made |= {"y_train": np.arange(4), "y_test": np.array([1])}
    assert build_dataset("made", "made", made).train["x"].dtype == kept


# Real data


@pytest.mark.parametrize(
    ("name", "shape", "rows"),
    [
        ("mnist", (28, 28, 1), (60_000, 10_000)),
        ("fashion_mnist", (28, 28, 1), (60_000, 10_000)),
        ("cifar10", (32, 32, 3), (50_000, 10_000)),
    ],
)
def test_real_image_sets_are_complete(name, shape, rows):
    dataset = FACTORIES[name](real_data(name))
    assert dataset.train["x"].shape == (rows[0], *shape) and dataset.test["x"].shape == (rows[1], *shape)
    assert len(np.unique(dataset.train["y"], return_counts=True)[1]) == 10


def test_real_femnist_has_its_writers():
    dataset = npz(real_data("femnist"), "femnist")
    assert dataset.num_classes == 62 and dataset.num_natural_clients == 450
    assert len(dataset.test_owners) == len(dataset.test["y"])
