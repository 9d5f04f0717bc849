"""A small Speech Commands folder, written with the standard library, for the tests of the source and its cache."""

import shutil
import types
import wave

import numpy as np
import pytest

# Path -> seconds. Speakers, sorted: 0 = 004ae714, 1 = 3b4f8f24, 2 = c50f55b8, 3 = ffd2ba2f.
CLIPS = {
    "yes/004ae714_nohash_0.wav": 1.0,
    "yes/004ae714_nohash_1.wav": 0.5,  # short
    "yes/c50f55b8_nohash_0.wav": 1.0,  # testing
    "no/c50f55b8_nohash_0.wav": 1.25,  # long
    "no/004ae714_nohash_0.wav": 1.0,
    "no/3b4f8f24_nohash_0.wav": 1.0,  # validation
    "no/ffd2ba2f_nohash_3.wav": 1.0,  # testing
    "bed/3b4f8f24_nohash_0.wav": 1.0,
    "bed/3b4f8f24_nohash_1.wav": 1.0,  # testing
    "bed/ffd2ba2f_nohash_0.wav": 1.0,  # validation
}
VALIDATION = ["no/3b4f8f24_nohash_0.wav", "bed/ffd2ba2f_nohash_0.wav"]
TESTING = ["yes/c50f55b8_nohash_0.wav", "no/ffd2ba2f_nohash_3.wav", "bed/3b4f8f24_nohash_1.wav"]
OWNER_OF = {"004ae714": 0, "3b4f8f24": 1, "c50f55b8": 2, "ffd2ba2f": 3}


def samples_of(path):
    """Noise that depends on the path alone, the same for every test."""
    rng = np.random.default_rng(list(path.encode()))
    return (rng.standard_normal(round(16_000 * CLIPS.get(path, 1.0))) * 2000).astype("<i2")


def write_wav(path, samples, rate=16_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", None))
        file.writeframes(samples.tobytes())


def write_tree(folder):
    for path in CLIPS:
        write_wav(folder / path, samples_of(path))
    write_wav(folder / "_background_noise_" / "running_tap.wav", samples_of("tap"))
    (folder / "empty").mkdir()
    (folder / "README.md").write_text("# no word")
    (folder / "yes" / "._004ae714_nohash_0.wav").write_bytes(b"what some systems leave behind")
    (folder / "validation_list.txt").write_text("\n".join(VALIDATION) + "\n")
    (folder / "testing_list.txt").write_text("\r\n".join(TESTING) + "\r\n\r\n")


@pytest.fixture(scope="session")
def speech_original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speech")
    write_tree(folder)
    return folder


@pytest.fixture
def speech_root(speech_original, tmp_path, monkeypatch):
    """A data directory of this test's own, and no other place to find or keep anything."""
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)
    monkeypatch.delenv("FEDJAX8_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "personal"))
    shutil.copytree(speech_original, tmp_path / "data" / "speech_commands_v0.02")
    return tmp_path / "data"


@pytest.fixture(scope="session")
def speech():
    """What the folder holds, and how to write more of it."""
    return types.SimpleNamespace(
        validation=VALIDATION,
        testing=TESTING,
        training=sorted(set(CLIPS) - set(VALIDATION) - set(TESTING)),
        owner_of=OWNER_OF,
        samples_of=samples_of,
        write_wav=write_wav,
    )
