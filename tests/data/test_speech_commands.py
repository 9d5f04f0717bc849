"""Speech Commands, from the small folder of `conftest.py`; and the real set where `$FEDJAX8_DATA` has it."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedjax8.data import by_key, federate, iid, match_test_owners
from fedjax8.data.features import PRESETS, mfcc
from fedjax8.data.sources.speech_commands import speech_commands
from fedjax8.errors import UserError

REAL_DATA = os.environ.get("FEDJAX8_DATA")


@pytest.fixture
def root(speech_root):
    return speech_root


@pytest.fixture
def folder(root):
    return root / "speech_commands_v0.02"


def cepstra_of(speech, paths):
    clips = np.zeros((len(paths), 16_000), np.int16)
    for clip, path in zip(clips, paths, strict=True):
        samples = speech.samples_of(path)[:16_000]
        clip[: len(samples)] = samples
    return mfcc(clips)


def refused(*arguments, **settings):
    """The message with which it is refused; one line."""
    with pytest.raises(UserError) as raised:
        speech_commands(*arguments, **settings)
    message = str(raised.value)
    assert "\n" not in message
    return message


# Matrix products of other sizes may add in another order: 80 logarithms of a size up to 20.
TOLERANCE = 2e-4


def test_rows_labels_and_speakers_are_those_of_the_folder(speech, root):
    dataset = speech_commands(str(root))
    assert dataset.name == "speech_commands" and dataset.num_classes == 3
    for columns, owners, paths in (
        (dataset.train, dataset.owners, speech.training),
        (dataset.test, dataset.test_owners, sorted(speech.testing)),
    ):
        assert columns["x"].dtype == np.float32 and columns["y"].dtype == owners.dtype == np.int32
        np.testing.assert_allclose(columns["x"], cepstra_of(speech, paths), atol=TOLERANCE)
        assert columns["y"].tolist() == [["bed", "no", "yes"].index(path.split("/")[0]) for path in paths]
        assert owners.tolist() == [speech.owner_of[path.split("/")[1][:8]] for path in paths]
    assert dataset.train["x"].shape == (5, 98, 40) and dataset.test["x"].shape == (3, 98, 40)
    x = dataset.train["x"].astype(np.float64)
    np.testing.assert_allclose(dataset.mean, x.mean((0, 1)), rtol=1e-9)  # one for each coefficient
    np.testing.assert_allclose(dataset.std, x.std((0, 1)), rtol=1e-9)


def test_the_validation_list_can_make_the_test_rows_of_the_same_training_rows(speech, root):
    testing, validation = speech_commands(str(root)), speech_commands(str(root), test="validation")
    np.testing.assert_array_equal(validation.train["x"], testing.train["x"])
    np.testing.assert_allclose(validation.test["x"], cepstra_of(speech, sorted(speech.validation)), atol=TOLERANCE)
    assert validation.test["y"].tolist() == [0, 1] and validation.test_owners.tolist() == [3, 1]


@pytest.mark.parametrize(("features", "shape"), [("kwt", (98, 40)), ("matchboxnet", (128, 64)), ("log_mel", (98, 40))])
def test_each_preset_gives_its_shape(root, features, shape):
    dataset = speech_commands(str(root), features=features)
    assert dataset.train["x"].shape[1:] == dataset.test["x"].shape[1:] == shape
    assert np.isfinite(dataset.train["x"]).all()


def test_chosen_words_are_numbered_among_themselves_and_speakers_keep_their_numbers(root):
    dataset = speech_commands(str(root), words=["yes", "bed"])
    assert dataset.num_classes == 2
    assert dataset.train["y"].tolist() == [0, 1, 1] and dataset.test["y"].tolist() == [0, 1]
    assert dataset.owners.tolist() == [1, 0, 0] and dataset.test_owners.tolist() == [1, 2]


@pytest.mark.parametrize(
    "place", ["speech_commands_v0.02", "speech_commands", "speech_commands/speech_commands_v0.02", ""]
)
def test_the_folder_is_found_wherever_it_may_lie(speech_original, tmp_path, monkeypatch, place):
    shutil.copytree(speech_original, tmp_path / "data" / place)
    monkeypatch.setenv("FEDJAX8_DATA", str(tmp_path / "data"))
    assert len(speech_commands(cache=False).train["y"]) == 5
    assert len(speech_commands(str(tmp_path / "data"), cache=False).train["y"]) == 5


def test_short_clips_end_in_silence_and_of_long_ones_the_first_second_counts(speech, root):
    x = speech_commands(str(root), features="log_mel", cache=False).train["x"][..., 0]
    silent = np.log(np.float32(PRESETS["log_mel"].floor))
    short, long = speech.training.index("yes/004ae714_nohash_1.wav"), speech.training.index("no/c50f55b8_nohash_0.wav")
    np.testing.assert_allclose(x[short, 50:], silent, rtol=1e-6)  # frame 50 begins at half a second
    assert (x[short, :48] > silent + 1).all() and (x[long] > silent + 1).all()


def test_speakers_become_clients(root):
    dataset = speech_commands(str(root))
    assert dataset.num_natural_clients == 3  # ffd2ba2f has no training rows
    clients = federate(dataset, by_key(), 3)
    assert sorted(clients.sizes.tolist()) == [1, 1, 3]
    for client, owner in enumerate([0, 1, 2]):
        np.testing.assert_array_equal(dataset.owners[clients.rows(client)], owner)
    owners = np.searchsorted([0, 1, 2], dataset.owners).astype(np.int32)
    assert match_test_owners(dataset, owners).tolist() == [1, -1, 2]
    mixed = federate(dataset, iid(), 2)
    assert sorted(mixed.sizes.tolist()) == [2, 3] and mixed.client(0)["x"].shape[1:] == (98, 40)


# What can be wrong


def test_a_missing_set_says_where_it_was_looked_for_and_how_to_get_it(speech, tmp_path, monkeypatch):
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)
    speech.write_wav(tmp_path / "spoken_digits" / "a.wav", speech.samples_of("digit"))  # of another set
    message = refused(str(tmp_path))
    for part in (tmp_path, tmp_path / "speech_commands", "unpacked speech_commands_v0.02.tar.gz", "$FEDJAX8_DATA"):
        assert str(part) in message
    assert f"python -m fedjax8.fetch speech_commands --data_dir={tmp_path}" in message
    (tmp_path / "speech_commands").mkdir()
    (tmp_path / "speech_commands" / "speech_commands_v0.02.tar.gz").write_bytes(b"")
    assert "tar.gz is there, but only its unpacked files are read: unpack it into" in refused(str(tmp_path))
    assert "speech_commands needs a data directory" in refused()
    assert "not a directory" in refused(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize(
    "names", [["testing_list.txt"], ["validation_list.txt"], ["testing_list.txt", "validation_list.txt"]]
)
def test_missing_lists_are_named(root, folder, names):
    for name in names:
        (folder / name).unlink()
    message = refused(str(root))
    assert message.startswith(f"{folder} lacks ") and all(name in message for name in names)
    assert ("validation" in message) == ("validation_list.txt" in names)


def test_lists_that_do_not_fit_the_folder_are_named(speech, root, folder):
    (folder / speech.testing[0]).unlink()
    message = refused(str(root))
    assert f"testing_list.txt names 1 of 3 clips that are not there, such as '{speech.testing[0]}'" in message
    speech.write_wav(folder / speech.testing[0], speech.samples_of(speech.testing[0]))
    (folder / "validation_list.txt").write_text("\n".join([*speech.validation, speech.testing[0]]))
    assert f"'{speech.testing[0]}' stands in both lists" in refused(str(root))
    (folder / "validation_list.txt").write_bytes(b"\xff\xfe" * 200)
    assert "names 1 of 1 clips that are not there" in refused(str(root))
    (folder / "validation_list.txt").write_text("/etc/passwd")
    assert "'/etc/passwd'" in refused(str(root))


@pytest.mark.parametrize("name", ["recording1.wav", "_nohash_0.wav"])
def test_files_that_name_no_speaker_are_named(speech, root, folder, name):
    speech.write_wav(folder / "bed" / name, speech.samples_of("odd"))
    assert f"{folder / 'bed' / name}: its name has no speaker" in refused(str(root))


def test_a_folder_without_clips_is_named(speech, tmp_path):
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / name).write_text("")
    speech.write_wav(tmp_path / "_background_noise_" / "running_tap.wav", speech.samples_of("tap"))
    assert f"{tmp_path} holds no .wav files" in refused(str(tmp_path))


def test_a_part_without_rows_is_named(root, folder):
    (folder / "testing_list.txt").write_text("")
    assert "test is empty" in refused(str(root))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"features": "kwtt"}, "no features 'kwtt': allowed are kwt, matchboxnet, log_mel; did you mean 'kwt'?"),
        ({"test": "train"}, "no test part 'train': allowed are validation, testing"),
        ({"words": ["yes", "nope"]}, "no word 'nope' in "),
        ({"words": ["beds"]}, "allowed are bed, no, yes; did you mean 'bed'?"),
        ({"words": ["_background_noise_"]}, "no word '_background_noise_'"),
        ({"words": []}, "words are (); give at least one"),
        ({"words": ["no", "no"]}, "each only once"),
        ({"words": "yes"}, "such as ('yes',)"),
    ],
)
def test_settings_that_cannot_work_are_named(root, settings, says):
    assert says in refused(str(root), **settings)


@pytest.mark.parametrize(
    ("samples", "rate", "says"),
    [(np.ones(9, "<i2"), 8000, "sampled at 8000 Hz"), (np.ones(0, "<i2"), 16_000, "empty")],
)
def test_clips_of_another_form_are_named(speech, root, folder, samples, rate, says):
    speech.write_wav(folder / speech.training[2], samples, rate)
    assert f"{folder / speech.training[2]}: {says}" in refused(str(root))


# The real set


@pytest.fixture
def real():
    folders = ("speech_commands_v0.02", "speech_commands")
    if not REAL_DATA or not any((Path(REAL_DATA) / name).is_dir() for name in folders):
        pytest.skip("$FEDJAX8_DATA has no speech_commands folder")
    return REAL_DATA


def test_the_real_set_is_complete(real):
    dataset, validation = speech_commands(real), speech_commands(real, test="validation")
    assert dataset.train["x"].shape == (84_843, 98, 40) and dataset.test["x"].shape == (11_005, 98, 40)
    assert len(validation.test["y"]) == 9_981 and dataset.num_classes == 35
    owners = [set(part.tolist()) for part in (dataset.owners, dataset.test_owners, validation.test_owners)]
    assert len(set.union(*owners)) == sum(map(len, owners)) == 2_618  # each speaker is in one part only
