"""Speech Commands: 105,829 clips of one second, 35 words by 2,618 speakers; every speaker is a client.

Warden, Speech Commands: A dataset for limited-vocabulary speech recognition, arXiv:1804.03209, 2018 (version 0.02).

Read from the unpacked official archive: one folder per word with `SPEAKER_nohash_NUMBER.wav` (16 kHz, 16 bits,
mono), `validation_list.txt` and `testing_list.txt`. A folder whose name begins with `_` or `.` is no word. Clips in
neither list are for training: 84,843 clips; 9,981 are for validation and 11,005 for testing.

The official split puts each speaker into one part only, so a client's own test set is empty there. Clips are
turned into features once, by `fedjax8.data.features`, and kept: see `_cache.py` for where. A clip shorter than a
second is followed by zeros, of a longer one the first second counts.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax8.data.features import FeatureSettings, compute_features, feature_shape, preset
from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset, channel_stats
from fedjax8.data.sources._cache import cache_folders, cache_key, cached_array
from fedjax8.data.sources._files import data_directory, missing_set
from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.readers.arrays import read_wav

_NAME = "speech_commands"
_FOLDER = "speech_commands_v0.02"
_ARCHIVE = f"{_FOLDER}.tar.gz"
_LISTS = {"validation": "validation_list.txt", "testing": "testing_list.txt"}
_MARK = "_nohash_"
_CLIPS_AT_ONCE = 256  # 8 MB of samples


class _Clip(NamedTuple):
    word: str
    file: str
    speaker: str
    num_bytes: int
    modified_ns: int

    @property
    def path(self) -> str:
        """As the lists name it."""
        return f"{self.word}/{self.file}"


def speech_commands(
    data_dir: str | None = None,
    *,
    features: str = "kwt",
    words: Sequence[str] | None = None,
    test: str = "testing",
    cache: bool = True,
) -> Dataset:
    """Speech Commands with x [N, frames, coefficients] float32, y the place of the word among the sorted words.

    Rows are sorted by word, then by file name. Owners number the sorted speakers of the whole folder, whatever the
    words chosen, so they agree between training and test rows. Mean and deviation are measured on the training rows,
    for each coefficient: the loudness would drown the others.

    Args:
        data_dir: holds `speech_commands_v0.02/` or `speech_commands/`, or is that folder; None for `$FEDJAX8_DATA`.
        features: a preset: `kwt` (98 x 40), `matchboxnet` (128 x 64) or `log_mel` (98 x 40).
        words: these alone, in any order; None for all.
        test: the official list that makes the test rows, `testing` or `validation`; the other list's rows are unused.
        cache: keep the features in files, 1.5 GB for all words (`matchboxnet` 3.1); large ones come memory-mapped.

    Raises:
        UserError: a missing, malformed or unknown file or word, with the nearest match.
    """
    settings = preset(features)
    if test not in _LISTS:
        raise UserError(f"no test part {test!r}: allowed are {', '.join(_LISTS)}{suggest(test, _LISTS)}")
    folder = _find_folder(data_directory(_NAME, data_dir))
    clips = _scan(folder)
    chosen = _choose(words, sorted({clip.word for clip in clips}), folder)
    part_of = _read_lists(folder, {clip.path for clip in clips})
    label_of = {word: label for label, word in enumerate(chosen)}
    owner_of = {speaker: owner for owner, speaker in enumerate(sorted({clip.speaker for clip in clips}))}
    arrays = {}
    for key, part in (("train", "training"), ("test", test)):
        rows = [clip for clip in clips if clip.word in label_of and part_of.get(clip.path, "training") == part]
        arrays[f"x_{key}"] = _features(folder, rows, f"{_NAME}-{part}-{features}", settings, cache)
        arrays[f"y_{key}"] = np.array([label_of[clip.word] for clip in rows], np.int32)
        arrays[f"client_{key}"] = np.array([owner_of[clip.speaker] for clip in rows], np.int32)
    row_shape = feature_shape(settings.sample_rate, settings)
    mean, std = channel_stats(arrays["x_train"][:, :, None, :], str(folder))
    return build_dataset(
        _NAME,
        str(folder),
        arrays,
        num_classes=len(chosen),
        row_shape=row_shape,
        mean=mean,
        std=std,
        measured=True,
    )


def _find_folder(root: Path) -> Path:
    """The folder with the lists; `UserError` where there is none, or one of them is missing."""
    places = (root / _FOLDER, root / _NAME / _FOLDER, root / _NAME, root)
    for folder in places:
        absent = [name for name in _LISTS.values() if not (folder / name).is_file()]
        if not absent:
            return folder
        # A folder of the data set's name, or with one list, is meant to be it; other folders are other people's.
        if len(absent) < len(_LISTS) or (folder != root and any(folder.glob("*/*.wav"))):
            raise UserError(
                f"{folder} lacks {' and '.join(absent)}, which list test clips; unpack {_ARCHIVE} into it again"
            )
    packed = [place / _ARCHIVE for place in (root, root / _NAME) if (place / _ARCHIVE).is_file()]
    hints = [
        f"{path} is there, but only its unpacked files are read: unpack it into {root / _FOLDER}" for path in packed
    ]
    raise missing_set(_NAME, root, (f"the unpacked {_ARCHIVE}, in a folder {_FOLDER}/,",), hints)


def _scan(folder: Path) -> list[_Clip]:
    """Every clip of every word, sorted by path."""
    clips = []
    try:
        with os.scandir(folder) as entries:
            words = sorted(entry.name for entry in entries if entry.name[0] not in "_." and entry.is_dir())
        for word in words:
            with os.scandir(folder / word) as entries:
                for entry in entries:
                    if entry.name.endswith(".wav") and entry.name[0] != ".":
                        speaker, mark, _ = entry.name.partition(_MARK)
                        if not mark or not speaker:
                            raise UserError(
                                f"{entry.path}: its name has no speaker; it must be SPEAKER{_MARK}NUMBER.wav"
                            )
                        status = entry.stat()
                        clips.append(_Clip(word, entry.name, speaker, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}: {error.filename})") from error
    if not clips:
        raise UserError(f"{folder} holds no .wav files in folders named like their words; unpack {_ARCHIVE} into it")
    return sorted(clips)


def _choose(words: Sequence[str] | None, known: list[str], folder: Path) -> list[str]:
    """The words that count, sorted."""
    if words is None:
        return known
    if isinstance(words, str):
        raise UserError(f"words is {words!r}; it must be a sequence of words, such as ({words!r},)")
    for word in words:
        if word not in known:
            raise UserError(f"no word {word!r} in {folder}: allowed are {', '.join(known)}{suggest(word, known)}")
    if not words or len(set(words)) < len(words):
        raise UserError(f"words are {tuple(words)}; give at least one, and each only once")
    return sorted(words)


def _read_lists(folder: Path, paths: set[str]) -> dict[str, str]:
    """Path -> `validation` or `testing`, for the clips that the lists name."""
    part_of = {}
    for part, name in _LISTS.items():
        try:
            lines = (folder / name).read_text("utf-8", "replace").splitlines()
        except OSError as error:
            raise UserError(f"{folder / name}: cannot be read ({error.strerror})") from error
        named = {line.strip() for line in lines} - {""}
        absent = sorted(named - paths)
        if absent:
            raise UserError(
                f"{folder / name} names {len(absent)} of {len(named)} clips that are not there, such as "
                f"{absent[0][:100]!r}; unpack {_ARCHIVE} again"
            )
        twice = sorted(named & part_of.keys())
        if twice:
            raise UserError(f"{twice[0]!r} stands in both lists of {folder}; a clip must be in one part only")
        part_of |= dict.fromkeys(named, part)
    return part_of


def _features(folder: Path, rows: list[_Clip], name: str, settings: FeatureSettings, cache: bool) -> np.ndarray:
    """[N, frames, values] float32, from the cache where it has them."""
    samples = settings.sample_rate  # one second

    def blocks() -> Iterator[np.ndarray]:
        logging.getLogger(__name__).info("computing %s of %d clips in %s", name, len(rows), folder)
        for start in range(0, len(rows), _CLIPS_AT_ONCE):
            chunk = rows[start : start + _CLIPS_AT_ONCE]
            clips = np.zeros((len(chunk), samples), np.int16)
            for clip, row in zip(clips, chunk, strict=True):
                heard = read_wav(folder / row.word / row.file, settings.sample_rate)[:samples]
                clip[: len(heard)] = heard
            yield compute_features(clips, settings)

    shape = (len(rows), *feature_shape(samples, settings))
    # A file counts as unchanged while its name, size and time of change are: reading all would take a minute.
    key = cache_key(settings, samples, [(clip.path, clip.num_bytes, clip.modified_ns) for clip in rows])
    return cached_array(cache_folders(folder) if cache else [], name, key, shape, blocks)


_FEW = ("no", "yes")  # enough to try out; all words take minutes the first time

EXAMPLES = (
    {"words": _FEW},
    {"features": "matchboxnet", "words": _FEW, "test": "validation"},
    {"features": "log_mel", "words": _FEW, "cache": False},
)
