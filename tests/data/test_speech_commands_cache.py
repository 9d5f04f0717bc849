"""The features of Speech Commands that are kept in files: when they are used, and every way they can be spoiled."""

import os
import sys
import zipfile

import numpy as np
import pytest

from fedjax8.data.sources import _cache
from fedjax8.data.sources.speech_commands import speech_commands
from fedjax8.errors import UserError

module = sys.modules["fedjax8.data.sources.speech_commands"]


@pytest.fixture
def root(speech_root):
    return speech_root


@pytest.fixture
def folder(root):
    return root / "speech_commands_v0.02"


def kept_files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file() and "speech_commands-" in p.name)


@pytest.fixture
def computed(monkeypatch):
    """How many clips were turned into features."""
    counts = []

    def counting(clips, settings):
        counts.append(len(clips))
        return compute(clips, settings)

    compute = module.compute_features
    monkeypatch.setattr(module, "compute_features", counting)
    return counts


def assert_same(one, other):
    for part in ("train", "test"):
        for name in ("x", "y"):
            np.testing.assert_array_equal(getattr(one, part)[name], getattr(other, part)[name])


def test_features_are_computed_once(root, folder, computed):
    first = speech_commands(str(root))
    assert sum(computed) == 8
    kept = kept_files(root)
    assert [p.name.rsplit("-", 1)[0] for p in kept] == ["speech_commands-testing-kwt", "speech_commands-training-kwt"]
    assert {p.parent for p in kept} == {folder / "_fedjax8_cache"}
    assert_same(speech_commands(str(root)), first)
    assert sum(computed) == 8
    speech_commands(str(root), test="validation")
    assert sum(computed) == 8 + 2  # training rows are shared
    assert_same(speech_commands(str(root), cache=False), first)
    assert sum(computed) == 8 + 2 + 8
    assert not list(root.rglob("*.part"))


def test_large_features_come_mapped_and_are_checked_all_the_same(root, computed, monkeypatch):
    read = _cache.read_npz
    monkeypatch.setattr(_cache, "read_npz", lambda path, names: read(path, names, map_above_bytes=0))
    speech_commands(str(root))
    dataset = speech_commands(str(root))
    assert isinstance(dataset.train["x"], np.memmap) and sum(computed) == 8
    assert_same(dataset, speech_commands(str(root), cache=False))
    path = kept_files(root)[1]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert_same(speech_commands(str(root)), speech_commands(str(root), cache=False))


def test_other_settings_and_changed_files_are_computed_anew(speech, root, folder, computed):
    def clips_computed(**settings):
        before = sum(computed)
        speech_commands(str(root), **settings)
        return sum(computed) - before

    assert clips_computed() == 8
    assert clips_computed(features="log_mel") == 8
    assert clips_computed(words=("yes", "no")) == 6
    assert clips_computed(words=("no", "yes")) == 0
    path = folder / speech.training[0]
    speech.write_wav(path, speech.samples_of("another"))
    os.utime(path, ns=(1, 1))
    assert clips_computed() == 5 and clips_computed() == 0
    speech.write_wav(folder / "bed" / "004ae714_nohash_7.wav", speech.samples_of("one more"))
    assert clips_computed() == 6
    (folder / "bed" / "004ae714_nohash_7.wav").unlink()
    assert clips_computed() == 0


def test_another_format_version_is_another_file(root, computed, monkeypatch):
    speech_commands(str(root))
    monkeypatch.setattr(_cache, "_FORMAT_VERSION", _cache._FORMAT_VERSION + 1)
    speech_commands(str(root))
    assert sum(computed) == 16


@pytest.mark.parametrize(
    "damage", ["empty", "cut", "flipped", "text", "other key", "other shape", "other dtype", "folder"]
)
def test_a_damaged_file_is_computed_anew_and_mended(root, computed, damage):
    whole = speech_commands(str(root))
    path = kept_files(root)[1]
    content = path.read_bytes()
    with np.load(path) as kept:
        key, x = kept["key"], kept["x"]
    wrong = {
        "other key": (np.array("0" * 64), x),
        "other shape": (key, x[:-1]),
        "other dtype": (key, x.astype(np.float64)),
    }
    if damage in wrong:
        np.savez(path, key=wrong[damage][0], x=wrong[damage][1])
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        flipped = (
            content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
        )
        path.write_bytes({"empty": b"", "cut": content[:-7], "flipped": flipped, "text": b"text"}[damage])
    assert_same(speech_commands(str(root)), whole)
    # A folder in its place shows only when the new file is to take it; then the next place is tried.
    needed = 8 + (2 * 5 if damage == "folder" else 5)
    assert sum(computed) == needed
    assert_same(speech_commands(str(root)), whole)
    assert sum(computed) == needed


def test_damage_to_any_part_of_a_file_is_noticed(tmp_path):
    shape, key = (3, 2), _cache.cache_key("a")
    x = np.arange(6, dtype=np.float32).reshape(shape)
    _cache.cached_array([tmp_path], "a", key, shape, lambda: iter([x[:2], x[2:]]))
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        for flip in (1, 8, 255):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ flip]) + whole[place + 1 :])
            kept = _cache._read_kept(path, key, shape)
            assert kept is None or np.array_equal(kept, x), place
    path.write_bytes(whole)
    np.testing.assert_array_equal(_cache._read_kept(path, key, shape), x)
    assert zipfile.ZipFile(path).testzip() is None


class Interrupted(BaseException):
    """As KeyboardInterrupt, without stopping pytest where the test fails."""


def test_an_interruption_leaves_nothing_half_written(root, folder, monkeypatch):
    def interrupt(*_):
        raise Interrupted

    monkeypatch.setattr(module, "_CLIPS_AT_ONCE", 2)
    for target, name in ((module, "compute_features"), (_cache.os, "replace")):
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(target, name, interrupt)
            speech_commands(str(root))
        assert list((folder / "_fedjax8_cache").iterdir()) == []
    assert len(speech_commands(str(root)).train["y"]) == 5 and len(kept_files(root)) == 2


def test_a_bad_clip_leaves_nothing_half_written(root, folder):
    (folder / "no" / "004ae714_nohash_0.wav").write_bytes(b"RIFF")
    with pytest.raises(UserError, match=r"no/004ae714_nohash_0\.wav: not a PCM wav file"):
        speech_commands(str(root))
    assert list((folder / "_fedjax8_cache").iterdir()) == []


def test_data_that_cannot_be_written_beside_are_kept_elsewhere(root, folder, tmp_path, computed, monkeypatch):
    (folder / "_fedjax8_cache").write_text("a file where the folder should go")
    whole = speech_commands(str(root))
    assert {p.parent for p in kept_files(tmp_path)} == {tmp_path / "personal" / "fedjax8"}
    assert_same(speech_commands(str(root)), whole)
    assert sum(computed) == 8
    monkeypatch.setenv("FEDJAX8_CACHE", str(tmp_path / "given" / "place"))
    assert_same(speech_commands(str(root)), whole)
    assert sum(computed) == 8 and not (tmp_path / "given").exists()  # found where it was
    speech_commands(str(root), features="log_mel")
    assert len(kept_files(tmp_path / "given" / "place")) == 2


def test_where_nothing_can_be_written_features_are_computed_each_time(root, folder, tmp_path, computed):
    for path in (folder / "_fedjax8_cache", tmp_path / "personal"):
        path.write_text("a file where the folder should go")
    assert_same(speech_commands(str(root)), speech_commands(str(root), cache=False))
    assert sum(computed) == 16 and kept_files(tmp_path) == []


def test_a_disk_that_fills_up_is_no_error(root, tmp_path, computed):
    resource = pytest.importorskip("resource")
    whole = speech_commands(str(root), cache=False)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # writing beyond one clip fails, as if full
    try:
        dataset = speech_commands(str(root))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert_same(dataset, whole)
    assert kept_files(tmp_path) == []  # nor a part of one
