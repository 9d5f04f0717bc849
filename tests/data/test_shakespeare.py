"""Text by speaking role, cut into windows: by hand, by a plain loop, and as the real plays have it."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedjax8.data.federated import federate, match_test_owners
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources.shakespeare import CHARACTERS, UNKNOWN, VOCABULARY, shakespeare
from fedjax8.errors import UserError

REAL_DATA = os.environ.get("FEDJAX8_DATA")
# The characters of TensorFlow Federated's tutorial, in its order.
TUTORIAL = "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r"


def write(folder, train, test, **changes):
    """`shakespeare.npz` with one text a role in each part."""
    arrays = {}
    for part, texts in (("train", train), ("test", test)):
        arrays[f"text_{part}"] = np.frombuffer("".join(texts).encode("latin-1"), np.uint8)
        arrays[f"offset_{part}"] = np.cumsum([0, *map(len, texts)])
    np.savez(folder / "shakespeare.npz", **(arrays | changes))
    return str(folder)


def ids(text):
    return [3 + sorted(TUTORIAL).index(c) for c in text]


def test_the_vocabulary_is_that_of_the_tutorial_with_four_special_ids():
    assert sorted(CHARACTERS) == sorted(TUTORIAL) and len(set(CHARACTERS)) == 86
    assert (VOCABULARY, UNKNOWN) == (90, 89)


def test_each_character_is_the_target_once_and_follows_the_one_before(tmp_path):
    dataset = shakespeare(write(tmp_path, ["To be, or", "", "a", "not?"], ["x", "", "", "yz"]), sequence_length=4)
    begin, padding, none = 1, 0, -1
    T, o, space, b, e, comma, _, o_, r = ids("To be, or")
    assert dataset.train["x"].tolist() == [
        [begin, T, o, space],
        [b, e, comma, space],
        [o_, padding, padding, padding],
        [begin, padding, padding, padding],
        [begin, *ids("not")],
    ]
    assert dataset.train["y"].tolist() == [
        [T, o, space, b],
        [e, comma, space, o_],
        [r, none, none, none],
        [*ids("a"), none, none, none],
        ids("not?"),
    ]
    assert dataset.owners.tolist() == [0, 0, 0, 2, 3]
    assert dataset.test_owners.tolist() == [0, 3] and dataset.test["y"].tolist()[1] == [*ids("yz"), none, none]
    assert dataset.num_classes == 90 and dataset.train["x"].dtype == np.int32


def test_a_character_that_the_vocabulary_lacks_has_an_id_of_its_own(tmp_path):
    dataset = shakespeare(write(tmp_path, ["a\xe9~b"], ["ab"]), sequence_length=4)
    assert dataset.train["y"].tolist() == [[*ids("a"), 89, 89, *ids("b")]]


def test_windows_of_random_texts_agree_with_a_loop_over_roles(tmp_path):
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list(TUTORIAL), n)) for n in (30, 0, 1, 7, 8, 6, 0)]
    dataset = shakespeare(write(tmp_path, texts, texts[:1]), sequence_length=7)
    row = 0
    for role, text in enumerate(texts):
        for start in range(0, len(text), 7):
            part = ids(text[start : start + 7])
            before = [1 if start == 0 else ids(text[start - 1])[0], *part[:-1]]
            assert dataset.train["y"][row].tolist() == part + [-1] * (7 - len(part))
            assert dataset.train["x"][row].tolist() == before + [0] * (7 - len(part))
            assert dataset.owners[row] == role
            row += 1
    assert row == len(dataset.train["x"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"offset_train": np.array([0, 5])}, "offset_train .* must be integers that rise from 0 to the 4 bytes"),
        ({"offset_train": np.array([0, 3, 2, 4])}, "offset_train"),
        ({"offset_test": np.array([0.0, 2.0])}, "offset_test"),
        ({"text_test": np.array(["ab"])}, r"text_test is <U2 \(1,\)"),
    ],
)
def test_texts_and_offsets_that_do_not_fit_are_named_with_their_file(tmp_path, changes, says):
    write(tmp_path, ["abcd"], ["ab"], **changes)
    with pytest.raises(UserError, match=says) as raised:
        shakespeare(str(tmp_path))
    assert str(raised.value).startswith(f"{tmp_path / 'shakespeare.npz'}: ")


def test_a_missing_file_and_a_length_of_one_are_named(tmp_path):
    with pytest.raises(UserError, match=r"shakespeare not found: .*shakespeare\.npz"):
        shakespeare(str(tmp_path))
    with pytest.raises(ValueError, match="sequence_length is 1; it must be at least 2"):
        shakespeare(write(tmp_path, ["ab"], ["ab"]), sequence_length=1)


def test_the_real_plays_lose_no_character_and_are_split_by_role():
    if not REAL_DATA or not (Path(REAL_DATA) / "shakespeare.npz").exists():
        pytest.skip("$FEDJAX8_DATA has no shakespeare")
    dataset = shakespeare(REAL_DATA)
    with np.load(Path(REAL_DATA) / "shakespeare.npz") as arrays:
        text, sizes = arrays["text_train"], np.diff(arrays["offset_train"])
    targets = dataset.train["y"][dataset.train["y"] >= 0]
    assert "".join(CHARACTERS[i - 3] for i in targets[:5000]) == text[:5000].tobytes().decode()
    assert len(targets) == len(text) and not np.any(targets == UNKNOWN)
    np.testing.assert_array_equal(np.bincount(dataset.owners), np.ceil(sizes / 80))
    clients = federate(dataset, by_key(), dataset.num_natural_clients)
    assert clients.num_clients == 1341 and clients.sizes.max() > 50 * np.median(clients.sizes)
    assert match_test_owners(dataset, dataset.owners).tolist() == dataset.test_owners.tolist()
