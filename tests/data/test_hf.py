"""The source `hf`, on data sets of the library `datasets` that are written to disk here."""

import io

import numpy as np
import pytest

from fedjax8.data.federated import federate
from fedjax8.data.names import unpacked
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources.hf import hf, stream
from fedjax8.data.sources.shakespeare import BEGIN, CHARACTERS
from fedjax8.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs datasets: pip install 'fedjax8[hf]'")
PIL = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'fedjax8[hf]'")
RNG = np.random.default_rng(0)


def save(folder, features, **parts):
    """parts: split -> rows, as lists by column; a single split `only` is saved as a Dataset."""
    made = {split: datasets.Dataset.from_dict(rows, datasets.Features(features)) for split, rows in parts.items()}
    kept = made["only"] if "only" in made else datasets.DatasetDict(made)
    kept.save_to_disk(str(folder))


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)
    datasets.disable_progress_bars()


def value(kind):
    return datasets.Value(kind)


def png(pixels, **kwargs):
    file = io.BytesIO()
    PIL.fromarray(pixels).save(file, **({"format": "PNG"} | kwargs))
    return {"bytes": file.getvalue(), "path": None}


BIRDS = {"image": datasets.Image(), "species": datasets.ClassLabel(names=["tit", "owl"]), "camera": value("string")}


def test_images_are_bytes_and_class_labels_keep_their_names(tmp_path):
    pixels = RNG.integers(0, 256, (5, 6, 4, 3), np.uint8)
    train = {"image": [png(p) for p in pixels[:3]], "species": [1, 0, 1], "camera": ["west", "east", "west"]}
    test = {"image": [png(p) for p in pixels[3:]], "species": [0, 1], "camera": ["east", "north"]}
    save(tmp_path / "birds", BIRDS, train=train, test=test)
    data = hf(str(tmp_path), "birds", client="camera")  # the only image and the only classes need no naming
    np.testing.assert_array_equal(data.train["x"], pixels[:3])
    np.testing.assert_array_equal(data.test["x"], pixels[3:])
    assert data.train["y"].tolist() == [1, 0, 1] and data.class_names == ("tit", "owl") and data.num_classes == 2
    assert unpacked(data.client_names) == ["east", "north", "west"] and "num_classes" in data.constants
    clients = federate(data, by_key(), 2)
    assert clients.named(np.arange(2)) == ["east", "west"] and clients.client(1)["y"].tolist() == [1, 1]
    small = hf(str(tmp_path), "birds", size=2, channels=1)
    assert small.train["x"].shape == (3, 2, 2, 1)


def test_gray_images_have_one_channel_and_parts_are_drawn_where_there_is_one(tmp_path):
    pixels = np.arange(10 * 4, dtype=np.uint8).reshape(10, 2, 2)
    save(tmp_path / "g", BIRDS, only={"image": [png(p) for p in pixels], "species": [0, 1] * 5, "camera": ["a"] * 10})
    data, other = hf(str(tmp_path), "g", test_fraction=0.3), hf(str(tmp_path), "g", test_fraction=0.3, seed=2)
    assert data.train["x"].shape == (7, 2, 2, 1) and data.test["x"].shape == (3, 2, 2, 1)
    both = np.concatenate([data.train["x"], data.test["x"]])[..., 0]
    np.testing.assert_array_equal(both[np.argsort(both[:, 0, 0])], pixels)
    assert not np.array_equal(data.test["x"], other.test["x"])


def test_numbers_in_columns_or_lists_are_features_and_floats_regression(tmp_path):
    features = {"a": value("float32"), "b": value("int64"), "t": value("float64")}
    features["v"] = datasets.Sequence(value("float32"))
    rows = {"a": [0.5, 1.5, 2.5], "b": [1, 2, 3], "v": [[1, 2], [3, 4], [5, 7]], "t": [0.25, 0.5, 0.75]}
    save(tmp_path / "n", features, train=rows, test=rows)
    data = hf(str(tmp_path), "n", x=("a", "b"), y="t")
    np.testing.assert_array_equal(data.train["x"], np.float32([[0.5, 1], [1.5, 2], [2.5, 3]]))
    assert data.train["y"].tolist() == [0.25, 0.5, 0.75] and data.num_classes is None
    listed = hf(str(tmp_path), "n", x="v", y=("t", "a"))
    assert listed.train["x"].tolist() == [[1, 2], [3, 4], [5, 7]] and listed.train["y"].shape == (3, 2)
    assert hf(str(tmp_path), "n", x="v", y="b").train["y"].dtype == np.int32  # whole numbers: classes


def test_lists_of_classes_or_of_marks_are_several_labels(tmp_path):
    names = datasets.ClassLabel(names=["sun", "rain", "wind"])
    features = {
        "x": datasets.Sequence(value("float32")),
        "tags": datasets.Sequence(names),
        "marks": datasets.Sequence(value("int8"), length=2),
    }
    rows = {"x": [[0.0, 1.0], [1.0, 3.0]], "tags": [[2, 0], []], "marks": [[0, 1], [1, 1]]}
    save(tmp_path / "m", features, train=rows, test=rows)
    data = hf(str(tmp_path), "m", x="x", y="tags")
    assert data.train["y"].tolist() == [[1, 0, 1], [0, 0, 0]] and data.train["y"].dtype == np.uint8
    assert data.class_names == ("sun", "rain", "wind")
    assert hf(str(tmp_path), "m", x="x", y="marks").train["y"].tolist() == [[0, 1], [1, 1]]


def test_texts_are_characters_to_classify_or_to_continue(tmp_path):
    features = {"said": value("string"), "mood": value("string"), "who": value("int64")}
    rows = {"said": ["To be", "ay"], "mood": ["sad", "glad"], "who": [20, 3]}
    save(tmp_path / "t", features, train=rows, test=rows)
    code = {c: i + 3 for i, c in enumerate(CHARACTERS)}
    data = hf(str(tmp_path), "t", x="said", y="mood", sequence_length=4)
    assert data.train["x"].tolist() == [[code[c] for c in "To b"], [code["a"], code["y"], 0, 0]]
    assert data.train["y"].tolist() == [1, 0] and data.class_names == ("glad", "sad")
    data = hf(str(tmp_path), "t", x="said", client="who", sequence_length=4)
    whole = [code[c] for c in "To b"]
    assert data.train["y"].tolist() == [whole, [code["e"], -1, -1, -1], [code["a"], code["y"], -1, -1]]
    assert data.train["x"][0, 0] == BEGIN and data.owners.tolist() == [1, 1, 0]
    assert unpacked(data.client_names) == ["3", "20"]


def test_clients_come_one_by_one_as_they_are_in_the_whole(tmp_path):
    pixels = RNG.integers(0, 256, (4, 3, 3), np.uint8)
    rows = {"image": [png(p) for p in pixels], "species": [1, 0, 1, 1], "camera": ["b", "a", "b", "a"]}
    save(tmp_path / "birds", BIRDS, train=rows, test=rows)
    found = list(stream(str(tmp_path), "birds", client="camera").train())
    assert [name for name, _ in found] == ["a", "b"]
    np.testing.assert_array_equal(found[1][1]["x"][..., 0], pixels[[0, 2]])
    assert found[0][1]["y"].tolist() == [0, 1] and found[0][1]["y"].dtype == np.int32
    ((name, whole),) = stream(str(tmp_path), "birds").train()
    assert name == "all" and whole["y"].tolist() == [1, 0, 1, 1]


GRAY, LARGER, COLOR = np.zeros((2, 2), np.uint8), np.zeros((3, 2), np.uint8), np.zeros((2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "settings", "says"),
    [
        ([png(GRAY), png(LARGER)], [0, 1], {}, r"row 1 of 'image' is \(3, 2, 1\), of another size.*config.data.size=N"),
        ([png(GRAY), png(COLOR), png(COLOR)], [0, 1, 1], {"size": 0, "channels": 3}, None),
        ([png(GRAY), png(COLOR)], [0, 1], {"channels": 0, "size": 2}, None),
        ([png(GRAY), png(GRAY, format="BMP")], [0, 1], {}, "not a readable image of PNG or JPEG"),
        ([png(GRAY), {"bytes": b"\x89PNG\r\n", "path": None}], [0, 1], {}, "not a readable image"),
        ([png(GRAY), None], [0, 1], {}, "row 1 of 'image' has no image"),
        ([png(GRAY), png(GRAY)], [0, -1], {}, r"row 1 of 'species' has no label \(-1\)"),
        ([png(GRAY), png(GRAY)], [0, 1], {"client": "camra"}, "no column 'camra'.*did you mean 'camera'"),
        ([png(GRAY), png(GRAY)], [0, 1], {"client": "camera"}, "row 0 of column 'camera' names no client"),
        ([png(GRAY), png(GRAY)], [0, 1], {"x": "camera", "y": "camera"}, "must differ"),
        ([png(GRAY), png(GRAY)], [0, 1], {"x": "species", "y": "camera"}, "row 0 of column 'camera' is None, no text"),
        ([png(GRAY), png(GRAY)], [0, 1], {"train": "all"}, "has no split 'all'; it has train, test"),
    ],
    ids=range(12),
)
def test_rows_that_cannot_be_used_are_named(tmp_path, images, labels, settings, says):
    rows = {"image": images, "species": labels, "camera": [None] * len(labels)}
    save(tmp_path / "b", BIRDS, train=rows, test=rows)
    if says is None and settings["channels"]:
        assert hf(str(tmp_path), "b", **settings).train["x"].shape == (3, 2, 2, 3)
        return
    with pytest.raises(UserError, match=says or "gray or colored"):
        hf(str(tmp_path), "b", **settings)


def test_images_outside_of_the_data_set_are_not_opened(tmp_path):
    (tmp_path / "outside.png").write_bytes(png(GRAY)["bytes"])
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "outside.png")}], "species": [0], "camera": ["a"]}
    table = datasets.Dataset.from_dict(rows, datasets.Features(BIRDS))
    real = table._data
    table.save_to_disk(str(tmp_path / "b"))
    import pyarrow as pa

    kept = next((tmp_path / "b").glob("*.arrow"))
    with pa.OSFile(str(kept), "wb") as sink, pa.RecordBatchStreamWriter(sink, real.table.schema) as writer:
        writer.write_table(real.table)  # without the bytes that save_to_disk put there
    with pytest.raises(UserError, match="has no image in the data set itself"):
        hf(str(tmp_path), "b", test="train")


@pytest.mark.parametrize("damage", ["missing", "json", "arrow"])
def test_damaged_folders_are_refused(tmp_path, damage):
    rows = {"x": [1.0, 2.0], "y": [0, 1]}
    save(tmp_path / "d", {"x": value("float32"), "y": value("int64")}, train=rows, test=rows)
    if damage == "missing":
        (tmp_path / "d" / "train" / "state.json").unlink()
    elif damage == "json":
        (tmp_path / "d" / "train" / "dataset_info.json").write_text("{")
    else:
        next((tmp_path / "d" / "train").glob("*.arrow")).write_bytes(b"\xff" * 40)
    with pytest.raises(UserError, match="cannot be opened as a data set"):
        hf(str(tmp_path), "d", x="x", y="y")
    with pytest.raises(UserError, match="there is no"):
        hf(str(tmp_path), "other", x="x", y="y")
    with pytest.raises(ValueError, match="one of the two"):
        hf(str(tmp_path))
