"""Images in folders, PatchCamelyon's h5 files and parts of other sets, all written small."""

import gzip
import sys

import numpy as np
import pytest

from fedjax8.data.sources.digits import digits
from fedjax8.data.sources.image_folder import image_folder
from fedjax8.data.sources.part import part
from fedjax8.data.sources.pcam import pcam
from fedjax8.errors import UserError

COLORS = {"blue": (0, 0, 255), "green": (0, 128, 0), "red": (255, 0, 0)}


@pytest.fixture(autouse=True)
def no_data_directory(monkeypatch):
    """Made-up data directories must not be mixed with the real one."""
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)


def write_images(root, counts, suffix=".png", size=(6, 4)):
    """Images of one color each, whose first row is as bright as their number."""
    image = pytest.importorskip("PIL.Image")
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image.new("RGB", size, tuple(max(c - i, 0) for c in COLORS[name])).save(root / name / f"{i:02}{suffix}")


# Folders of images


def test_classes_are_numbered_by_name_and_images_come_in_one_size_and_color(tmp_path):
    write_images(tmp_path / "set", {"red": 4, "blue": 6}, suffix=".PNG")
    (tmp_path / "set" / "red" / "notes.txt").write_text("no image")
    (tmp_path / "set" / "_cache").mkdir()
    pytest.importorskip("PIL.Image").new("L", (9, 9), 77).save(tmp_path / "set" / "blue" / "99.jpeg")
    dataset = image_folder(str(tmp_path), "set", size=3, test_fraction=0.25)
    assert (dataset.num_classes, dataset.name) == (2, "set")
    assert dataset.train["x"].shape == (8, 3, 3, 3) and dataset.train["x"].dtype == np.uint8
    # A quarter of 4 and of 7, rounded: one and two for testing.
    assert np.bincount(dataset.train["y"]).tolist() == [5, 3] and np.bincount(dataset.test["y"]).tolist() == [2, 1]
    together = np.concatenate([dataset.train["x"], dataset.test["x"]])
    labels = np.concatenate([dataset.train["y"], dataset.test["y"]])
    first = {tuple(x[0, 0].tolist()) for x in together[labels == 1]}
    assert first == {(255 - i, 0, 0) for i in range(4)}  # every red image once, in one part or the other
    assert (77, 77, 77) in {tuple(x[2, 2].tolist()) for x in together[labels == 0]}  # gray becomes three colors


def test_the_draw_for_testing_depends_on_names_and_seed_alone(tmp_path):
    write_images(tmp_path / "set", {"red": 12, "blue": 12})
    once, again, other = (image_folder(str(tmp_path), "set", size=2, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(once.test["x"], again.test["x"])
    assert np.any(once.test["x"] != other.test["x"])


def test_a_split_of_its_own_is_taken_and_test_may_lack_a_class(tmp_path):
    write_images(tmp_path / "set" / "train", {"red": 1, "blue": 2, "green": 1})
    write_images(tmp_path / "set" / "test", {"red": 1, "green": 2}, suffix=".jpg")
    dataset = image_folder(str(tmp_path), "set", size=2)
    assert dataset.train["y"].tolist() == [0, 0, 1, 2] and dataset.test["y"].tolist() == [1, 1, 2]
    write_images(tmp_path / "set" / "train", {"red": 1})
    (tmp_path / "set" / "test" / "pink").mkdir()
    write_images(tmp_path / "set" / "test", {"red": 1})
    (tmp_path / "set" / "test" / "red" / "00.png").rename(tmp_path / "set" / "test" / "pink" / "00.png")
    with pytest.raises(UserError, match=r"test has a class 'pink' that .*train has not"):
        image_folder(str(tmp_path), "set", size=2)


def test_what_is_wrong_with_a_folder_is_said_and_where(tmp_path):
    with pytest.raises(UserError, match="set is not a folder; it must hold a folder for each class"):
        image_folder(str(tmp_path), "set")
    (tmp_path / "set").mkdir()
    with pytest.raises(UserError, match="set holds no folders"):
        image_folder(str(tmp_path), "set")
    write_images(tmp_path / "set", {"red": 1})
    with pytest.raises(UserError, match="red holds one image; a class needs two"):
        image_folder(str(tmp_path), "set")
    write_images(tmp_path / "set", {"red": 2})
    (tmp_path / "set" / "blue").mkdir()
    with pytest.raises(UserError, match=r"blue holds no images; .*png, .jpg, .jpeg"):
        image_folder(str(tmp_path), "set")
    write_images(tmp_path / "set", {"blue": 2})
    whole = (tmp_path / "set" / "blue" / "01.png").read_bytes()
    for broken in (b"", b"not an image", whole[:50]):
        (tmp_path / "set" / "blue" / "01.png").write_bytes(broken)
        with pytest.raises(UserError, match=r"01.png: not a readable image"):
            image_folder(str(tmp_path), "set", size=2)


def test_without_pillow_it_says_what_to_install(tmp_path, monkeypatch):
    write_images(tmp_path / "set", {"red": 2})
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"pip install 'fedjax8\[images\]'"):
        image_folder(str(tmp_path), "set")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "folder is empty"),
        ({"folder": "set", "size": 0}, "size is 0; it must be at least 1"),
        ({"folder": "set", "test_fraction": 1.0}, "test_fraction is 1.0; it must lie strictly between 0 and 1"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        image_folder(str(tmp_path), **settings)


# PatchCamelyon


def patches(rows, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (rows, 96, 96, 3)).astype(np.uint8), (np.arange(rows) % 2).astype(np.uint8)


def write_h5(folder, parts):
    h5py = pytest.importorskip("h5py")
    folder.mkdir(parents=True, exist_ok=True)
    for name, (x, y) in parts.items():
        for column, array in (("x", x), ("y", y.reshape(-1, 1, 1, 1))):
            with h5py.File(folder / f"camelyonpatch_level_2_split_{name}_{column}.h5", "w") as file:
                file.create_dataset(column, data=array)


@pytest.mark.parametrize("folder", ["", "pcam"])
def test_pcam_reads_its_h5_files_and_the_same_rows_from_an_npz(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("fedjax8.data.sources.pcam._ROWS_AT_ONCE", 4)  # blocks that hold several rows, one, or none
    (x, y), (test_x, test_y) = made = patches(11), patches(5, seed=1)
    write_h5(tmp_path / "a" / folder, dict(zip(("train", "test"), made, strict=True)))
    whole = pcam(str(tmp_path / "a"))
    np.testing.assert_array_equal(whole.train["x"], x)
    np.testing.assert_array_equal(whole.test["y"], test_y)
    (tmp_path / "b").mkdir()
    np.savez(tmp_path / "b" / "pcam.npz", x_train=x, y_train=y, x_test=test_x, y_test=test_y)
    some = [pcam(str(tmp_path / where), rows=3, test_rows=2, seed=5) for where in "ab"]
    np.testing.assert_array_equal(some[0].train["x"], some[1].train["x"])
    assert len(some[0].train["x"]) == 3 and len(some[0].test["y"]) == 2 and some[0].num_classes == 2
    found = [int(np.flatnonzero((x == row).all(axis=(1, 2, 3)))[0]) for row in some[0].train["x"]]
    assert found == sorted(set(found)) and some[0].train["y"].tolist() == y[found].tolist()


def test_pcam_says_what_is_missing_damaged_or_too_little(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"pcam not found: .*pcam.npz or camelyonpatch_level_2_split_train_x.h5"):
        pcam(str(tmp_path))
    write_h5(tmp_path, {"train": patches(4), "test": patches(2)})
    with pytest.raises(UserError, match="5 train rows are wanted, but there are 4"):
        pcam(str(tmp_path), rows=5)
    with pytest.raises(ValueError, match="test_rows is -1"):
        pcam(str(tmp_path), test_rows=-1)
    labels = tmp_path / "camelyonpatch_level_2_split_test_y.h5"
    kept = labels.read_bytes()
    for broken in (gzip.compress(kept), kept[:300]):
        labels.write_bytes(broken)
        with pytest.raises(UserError, match=r"test_y.h5: cannot be read as the h5 files of pcam"):
            pcam(str(tmp_path))
    labels.write_bytes((tmp_path / "camelyonpatch_level_2_split_train_y.h5").read_bytes())
    with pytest.raises(UserError, match=r"test_y.h5: 4 labels for 2 images"):
        pcam(str(tmp_path))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pip install 'fedjax8\[images\]'"):
        pcam(str(tmp_path))


# Part of another set


def test_a_part_is_rows_of_the_whole_set_in_their_order_and_drawn_once(tmp_path):
    whole, some, again, other = digits(), *(part(of="digits", rows=50, test_rows=20, seed=s) for s in (1, 1, 2))
    np.testing.assert_array_equal(some.train["x"], again.train["x"])
    assert np.any(some.train["x"] != other.train["x"])
    assert (len(some.train["x"]), len(some.test["x"]), some.num_classes) == (50, 20, 10)
    assert (some.mean, some.std) == (whole.mean, whole.std)
    rows = whole.train["x"].reshape(len(whole.train["x"]), -1)
    found = [set(np.flatnonzero((rows == row).all(axis=1))) for row in some.train["x"].reshape(50, -1)]
    first = [min(places) for places in found]
    assert all(found) and first == sorted(first)
    assert some.train["y"].tolist() == [whole.train["y"][place] for place in first]


def test_classes_are_kept_and_numbered_anew_in_the_order_given(tmp_path):
    x = np.arange(12, dtype=np.uint8).reshape(12, 1)
    y = np.arange(12) % 4
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, client_train=y * 10, client_test=y * 10)
    some = part(str(tmp_path), "own.npz", classes=(3, 1))
    assert some.num_classes == 2 and some.name == "own"
    assert some.train["x"][:, 0].tolist() == [1, 3, 5, 7, 9, 11] and some.train["y"].tolist() == [1, 0] * 3
    assert some.owners.tolist() == [10, 30] * 3 and some.test_owners.tolist() == [10, 30] * 3
    few = part(str(tmp_path), "own.npz", classes=(3, 1), rows=2, test_rows=5)
    assert set(few.train["x"][:, 0].tolist()) <= {1, 3, 5, 7, 9, 11} and len(few.test["y"]) == 5


def test_a_part_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"part of digits: 9999 train rows are wanted, but there are 14\d\d"):
        part(of="digits", rows=9999)
    with pytest.raises(UserError, match="digits has the labels 0 to 9, and not 10"):
        part(of="digits", classes=(1, 10))
    with pytest.raises(ValueError, match="classes must be different labels"):
        part(of="digits", classes=(1, 1))
    with pytest.raises(UserError, match=r"no 'digit' in sources.*did you mean 'digits'"):
        part(of="digit")
    with pytest.raises(UserError, match="synthetic_text is a set of sequences"):
        part(of="synthetic_text")
