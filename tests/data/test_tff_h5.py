"""The source `tff_h5`: layouts of TensorFlow Federated's h5 files, made here; links and promises of hostile ones."""

import tarfile

import numpy as np
import pytest

from fedjax8.data.names import unpacked
from fedjax8.data.sources.shakespeare import BEGIN, CHARACTERS, PADDING
from fedjax8.data.sources.tff_h5 import tff_h5
from fedjax8.errors import UserError
from fedjax8.fetch import SOURCES, unpack
from fedjax8.normalization import normalization

h5py = pytest.importorskip("h5py", reason="needs h5py: pip install 'fedjax8[images]'")
RNG = np.random.default_rng(0)


def write(folder, file, part, clients):
    """clients: name -> {field: values}."""
    path = folder / f"{file}_{part}.h5"
    with h5py.File(path, "w") as opened:
        examples = opened.create_group("examples")
        for name, fields in clients.items():
            for field, values in fields.items():
                kind = {"dtype": h5py.string_dtype()} if isinstance(values, list) else {}
                examples.create_group(name) if name not in examples else None
                examples[name].create_dataset(field, data=values, **kind)
    return path


def digits(rows, labels):
    return {"pixels": RNG.random((rows, 28, 28), np.float32), "label": np.array(labels, np.int32)}


def test_emnist_rows_are_images_of_the_writers_by_name(tmp_path):
    train = {"f0001_41": digits(2, [3, 0]), "f0000_14": digits(3, [1, 2, 2])}
    test = {"f0000_14": digits(1, [3])}
    write(tmp_path, "fed_emnist", "train", train)
    write(tmp_path, "fed_emnist", "test", test)
    data = tff_h5(str(tmp_path))
    assert unpacked(data.client_names) == ["f0000_14", "f0001_41"] and data.num_classes == 4
    pixels = np.concatenate([train["f0000_14"]["pixels"], train["f0001_41"]["pixels"]])[..., None]
    np.testing.assert_array_equal(data.train["x"], pixels)
    assert data.train["y"].tolist() == [1, 2, 2, 3, 0] and data.owners.tolist() == [0, 0, 0, 1, 1]
    assert data.test_owners.tolist() == [0]
    some = tff_h5(str(tmp_path), max_clients=1, max_rows=2)
    assert some.train["y"].tolist() == [1, 2] and unpacked(some.client_names) == ["f0000_14"]


def test_what_fetch_unpacks_is_found(tmp_path):
    """An archive as the publisher packs it, both files at its top."""
    made = tmp_path / "made"
    made.mkdir()
    with tarfile.open(made / "fed_emnist.tar.bz2", "w:bz2") as archive:
        for part in ("train", "test"):
            path = write(made, "fed_emnist", part, {"f0": digits(2, [1, 0])})
            archive.add(path, path.name)
    unpack([made / "fed_emnist.tar.bz2"], tmp_path / "fed_emnist" / SOURCES["fed_emnist"].unpack_into)
    assert tff_h5(str(tmp_path)).train["y"].tolist() == [1, 0]


def test_cifar_images_stay_bytes(tmp_path):
    client = {"image": RNG.integers(0, 256, (2, 32, 32, 3), np.uint8), "label": np.array([7, 99], np.int64)}
    client["coarse_label"] = client["label"]
    for part in ("train", "test"):
        write(tmp_path, "fed_cifar100", part, {"0": client})
    data = tff_h5(str(tmp_path), "fed_cifar100")
    np.testing.assert_array_equal(data.train["x"], client["image"])
    assert data.num_classes == 100 and data.train["y"].tolist() == [7, 99]


def test_snippets_are_texts_of_their_own(tmp_path):
    for part in ("train", "test"):
        write(tmp_path, "shakespeare", part, {"HAMLET": {"snippets": ["To be", "ay"]}, "MUTE": {"snippets": [""]}})
    data = tff_h5(str(tmp_path), "shakespeare", sequence_length=4)
    code = {c: i + 3 for i, c in enumerate(CHARACTERS)}
    to_be = [code[c] for c in "To be"]
    assert data.train["y"].tolist() == [to_be[:4], [to_be[4], -1, -1, -1], [code["a"], code["y"], -1, -1]]
    assert data.train["x"][0].tolist() == [BEGIN, *to_be[:3]] and data.train["x"][2, 2:].tolist() == [PADDING] * 2
    assert unpacked(data.client_names) == ["HAMLET"]


POSTS = {
    "u1": {
        "tokens": ["how to sort a list", "a list a list a"],
        "title": ["sort it", "it"],
        "tags": ["python|list", "list"],
        "score": np.array([1, 2], np.int64),
    },
    "u2": {"tokens": ["", "sort how"], "title": ["", "odd"], "tags": ["c", "python"], "score": np.array([0, 0])},
}


def write_posts(tmp_path):
    write(tmp_path, "stackoverflow", "train", POSTS)
    write(
        tmp_path, "stackoverflow", "test", {"u9": {"tokens": ["a strange list"], "title": ["how"], "tags": ["c|list"]}}
    )


def test_the_next_word_is_of_a_vocabulary_counted_on_training_rows(tmp_path):
    write_posts(tmp_path)
    data = tff_h5(str(tmp_path), "stackoverflow", vocabulary=4, sequence_length=6)
    # Counts: a 4, list 3, how 2, sort 2, to 1. Words 1 a, 2 list, 3 how, 4 sort; 5 other, 6 BEGIN, 7 END, 0 padding.
    assert data.train["x"].tolist() == [[6, 3, 5, 4, 1, 2], [6, 1, 2, 1, 2, 1], [6, 4, 3, 0, 0, 0]]
    assert data.train["y"].tolist() == [[3, 5, 4, 1, 2, 7], [1, 2, 1, 2, 1, 7], [4, 3, 7, -1, -1, -1]]
    assert data.test["x"].tolist() == [[6, 1, 5, 2, 0, 0]] and data.num_classes == 8
    assert "num_classes" not in data.constants  # the words were counted on rows
    cut = tff_h5(str(tmp_path), "stackoverflow", vocabulary=4, sequence_length=2)
    assert cut.train["x"][0].tolist() == [6, 3] and cut.train["y"][0].tolist() == [3, 5]  # cut: no END


def test_tags_are_labels_of_shares_of_words(tmp_path):
    write_posts(tmp_path)
    data = tff_h5(str(tmp_path), "stackoverflow", predict="tags", vocabulary=3, tags=2)
    # With titles: a 4, how 2, it 2, list 3, sort 3. Words a, list, sort; tags list 2, python 2, c 1.
    assert data.class_names == ("list", "python") and data.num_classes is None
    assert data.train["y"].tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]] and data.train["y"].dtype == np.uint8
    expected = np.float32([[1 / 7, 1 / 7, 2 / 7], [3 / 6, 2 / 6, 0], [0, 0, 0], [0, 0, 1 / 3]])
    np.testing.assert_allclose(data.train["x"], expected, rtol=1e-6)
    assert data.test["y"].tolist() == [[1, 0]]
    with pytest.raises(UserError, match="the vocabulary and the tags of stackoverflow were read off its training rows"):
        normalization(data, (0.0,), (1.0,), private=True)


def refused(tmp_path, says, file="fed_emnist", **settings):
    with pytest.raises(UserError, match=says):
        tff_h5(str(tmp_path), file, **settings)


def test_other_fields_shapes_and_files_are_named(tmp_path):
    refused(tmp_path, "python -m fedjax8.fetch fed_emnist")
    good = {"a": digits(1, [0])}
    write(tmp_path, "fed_emnist", "test", good)
    write(tmp_path, "fed_emnist", "train", {"a": {"words": np.zeros(3)}})
    refused(tmp_path, "clients have fields words; known are pixels, label")
    write(
        tmp_path, "fed_emnist", "train", {"a": {"pixels": np.zeros((2, 8, 8), np.float32), "label": np.zeros(2, int)}}
    )
    refused(tmp_path, r"client 'a': pixels float32 \(2, 8, 8\)")
    write(tmp_path, "fed_emnist", "train", {"a": {"pixels": digits(2, [0, 1])["pixels"], "label": np.zeros(3, int)}})
    refused(tmp_path, r"lengths \[2, 3\]")
    write(tmp_path, "fed_emnist", "train", {})
    refused(tmp_path, "holds no clients")
    (tmp_path / "fed_emnist_train.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(200))
    refused(tmp_path, "fed_emnist_train.h5: not an h5 file of this layout")


def test_links_and_promises_without_bytes_are_refused(tmp_path):
    write(tmp_path, "fed_emnist", "test", {"a": digits(1, [0])})
    write(tmp_path, "other", "train", {"a": digits(1, [0])})
    with h5py.File(tmp_path / "fed_emnist_train.h5", "w") as file:
        file["examples"] = h5py.ExternalLink(str(tmp_path / "other_train.h5"), "/examples")
    refused(tmp_path, "'examples' is a link")
    with h5py.File(tmp_path / "fed_emnist_train.h5", "w") as file:
        group = file.create_group("examples/a")
        group.create_dataset("pixels", (200_000, 28, 28), np.float32, chunks=True)
        group.create_dataset("label", (200_000,), np.int32, chunks=True)
    refused(tmp_path, "promises 627200000 bytes")
    (tmp_path / "secret").write_bytes(bytes(4 * 784))
    with h5py.File(tmp_path / "fed_emnist_train.h5", "w") as file:
        group = file.create_group("examples/a")
        group.create_dataset("pixels", (1, 28, 28), np.float32, external=[(str(tmp_path / "secret"), 0, 4 * 784)])
        group.create_dataset("label", data=np.zeros(1, np.int32))
    refused(tmp_path, "or elsewhere")


@pytest.mark.parametrize(
    ("settings", "says"), [({"predict": "x"}, "predict 'x'"), ({"max_rows": -1}, "max_rows is -1")]
)
def test_settings_out_of_range_are_named(tmp_path, settings, says):
    with pytest.raises(ValueError, match=says):
        tff_h5(str(tmp_path), **settings)
