"""The source `leaf`: users of LEAF's JSON files become clients by name, and other rows are refused with a sentence."""

import json

import numpy as np
import pytest

from fedjax8.data.federated import federate
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources.leaf import leaf
from fedjax8.data.sources.shakespeare import CHARACTERS
from fedjax8.errors import UserError


def write(folder, part, users, name="all_data_0.json"):
    """users: name -> (x, y)."""
    document = {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }
    path = folder / part / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def test_femnist_rows_are_images_of_the_writers_by_name(tmp_path):
    pixels = np.round(np.random.default_rng(0).random((5, 784)), 3)
    one, two = pixels[:2].tolist(), pixels[2:4].tolist()
    write(tmp_path / "femnist" / "data", "train", {"f2": (one, [1, 0]), "empty": ([], [])})
    write(tmp_path / "femnist" / "data", "train", {"f1": (two, [2, 1])}, "all_data_1.json")
    write(tmp_path / "femnist" / "data", "test", {"f1": (pixels[4:].tolist(), [2])})
    data = leaf(str(tmp_path), "femnist")
    np.testing.assert_array_equal(data.train["x"], pixels[:4].astype(np.float32).reshape(4, 28, 28, 1))
    assert data.train["y"].tolist() == [1, 0, 2, 1] and data.num_classes == 3 and data.name == "femnist"
    clients = federate(data, by_key(), data.num_natural_clients)
    assert clients.named(np.arange(2)) == ["f1", "f2"] and clients.client(0)["y"].tolist() == [2, 1]
    assert data.test_owners.tolist() == [0]


def test_shakespeare_predicts_the_character_after_each_row(tmp_path):
    write(tmp_path, "train", {"HAMLET": (["To b", "o be"], ["e", ","])})
    write(tmp_path, "test", {"HAMLET": (["~\u20ac b"], ["e"])})
    data = leaf(str(tmp_path), ".")
    number = lambda text: [CHARACTERS.index(c) + 3 if c in CHARACTERS else 89 for c in text]
    assert data.train["x"].tolist() == [number("To b"), number("o be")] and data.num_classes == 90
    assert data.train["y"].tolist() == [[-1, -1, -1, *number("e")], [-1, -1, -1, *number(",")]]
    assert data.test["x"].tolist() == [number("~\u20ac b")]


GOOD = {"a": ([[1.0, 2.0]], [0])}


@pytest.mark.parametrize(
    ("users", "says"),
    [
        ({"a": ([["1", "@x", "so sad"]], ["0"])}, "texts of words, as of Sent140"),
        ({"a": (["000123.jpg"], [1])}, "name image files, as of CelebA"),
        ({"a": ([[1.0], [1.0, 2.0]], [0, 1])}, "user 'a': x must be rows of equally many numbers"),
        ({"a": ([[1.0, 2.0]], [0.5])}, "must be classes"),
        ({"a": ([[1.0, 2.0]], [-1])}, "from -1"),
        ({"a": ([[1.0, 2.0]], [10**30])}, "user 'a'"),
        ({"a": (["abc", "ab"], ["a", "b"])}, "texts of one length"),
        ({"a": ([[1.0, 2.0]], [0]), "b": ([[1.0, 2.0, 3.0]], [0])}, "rows of several shapes"),
        ({"a": ([], [])}, "no user has rows"),
        ({"": ([[1.0, 2.0]], [0])}, "id is empty"),
    ],
)
def test_rows_that_are_not_read_are_named(tmp_path, users, says):
    write(tmp_path, "train", users)
    write(tmp_path, "test", GOOD)
    with pytest.raises(UserError, match=says):
        leaf(str(tmp_path), ".")


def test_a_user_in_two_files_is_refused(tmp_path):
    write(tmp_path, "train", GOOD)
    write(tmp_path, "test", GOOD)
    write(tmp_path, "train", GOOD, "more.json")
    with pytest.raises(UserError, match="user 'a' is in this part twice"):
        leaf(str(tmp_path), ".")


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "[" * 100_000, '{"users": ["a"], "num_samples": [1], "user_data": []}', "\0",
        '{"users": ["a"], "num_samples": [], "user_data": {}}',
        '{"users": [["a"]], "num_samples": [1], "user_data": {}}',
        '{"users": ["a"], "num_samples": [1], "user_data": {"a": {"x": [[NaN]], "y": [0]}}}',
        '{"users": ["a"], "num_samples": [2], "user_data": {"a": {"x": [[1]], "y": [0]}}}',
        '{"users": ["a"], "num_samples": [1], "user_data": {"b": {"x": [[1]], "y": [0]}}}',
    ],
    ids=range(11),
)  # fmt: skip
def test_damaged_files_are_refused_by_name(tmp_path, text):
    write(tmp_path, "train", GOOD).write_text(text)
    write(tmp_path, "test", GOOD)
    with pytest.raises(UserError, match=r"all_data_0\.json"):
        leaf(str(tmp_path), ".")


def test_a_folder_without_files_is_named(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UserError, match=r"train holds no \.json files"):
        leaf(str(tmp_path), ".")
    with pytest.raises(UserError, match="there is no"):
        leaf(str(tmp_path), "absent")
