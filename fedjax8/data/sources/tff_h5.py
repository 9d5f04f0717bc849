"""The HDF5 files of TensorFlow Federated: EMNIST, CIFAR-100, Shakespeare and Stack Overflow by client.

    FILE_train.h5, FILE_test.h5         examples/CLIENT/FIELD [n, ...]

    fields                  rows
    pixels, label           images float32 [28, 28, 1] as in the file (0 ink, 1 white); 62 classes, 10 of `digitsonly`
    image, label            images uint8 [32, 32, 3]; 100 classes
    snippets                characters, as rows of `shakespeare` and by its ids: each snippet is a text of its own
    tokens, title, tags     Stack Overflow, in one of two tasks

`predict="words"`: the word after each. A sentence becomes BEGIN w_1 ... w_n END, cut to `sequence_length`; ids are 0
padding, 1 to V the words in the order of their counts, V + 1 any other word, V + 2 BEGIN, V + 3 END, which follows
Reddi et al., Adaptive federated optimization, ICLR 2021. The words are the V most frequent of the training rows that
are used, ties in alphabetical order; the publishers' own list of counts is not used.

`predict="tags"`: x float32 [V] is the share of each word among tokens and title, words outside V counted in the whole;
y uint8 [T] marks which of the T most frequent tags the post has.

    python -m fedjax8.fetch fed_emnist --data_dir=DIR
    python -m fedjax8.train --data_dir=DIR --config.data.name=tff_h5 --config.data.file=fed_emnist \
        --config.model.name=cnn --config.partition.name=by_key --config.num_clients=0

Read by h5py (`pip install 'fedjax8[images]'`), a client at a time. All of Stack Overflow is beyond most memories:
`max_clients`, or `python -m fedjax8.convert` and the source `mapped`.
"""

import collections
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.checks import NO_TARGET
from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import check_standardize
from fedjax8.data.sources._files import data_directory
from fedjax8.data.sources._streams import Clients, Stream, gathered
from fedjax8.data.sources.shakespeare import VOCABULARY, windows
from fedjax8.errors import UserError
from fedjax8.lookup import optional
from fedjax8.readers.arrays import MOST_EXPANSION
from fedjax8.types import MARKS

_FIELDS = {
    "emnist": ("pixels", "label"),
    "cifar": ("image", "label"),
    "characters": ("snippets",),
    "posts": ("tokens", "title", "tags"),
}
_LARGEST_FIELD = 1 << 32
"""Bytes of one field of one client, at most."""
PREDICT = ("words", "tags")


def tff_h5(
    data_dir: str | None = None,
    file: str = "fed_emnist",
    *,
    predict: str = "words",
    vocabulary: int = 10_000,
    tags: int = 500,
    sequence_length: int = 0,
    max_clients: int = 0,
    max_rows: int = 0,
    standardize: str = "auto",
) -> Dataset:
    """The clients of `FILE_train.h5` and `FILE_test.h5` as natural clients, by name.

    Args:
        data_dir: None for `$FEDJAX8_DATA`; the files lie there or in its folder FILE.
        file: `fed_emnist`, `fed_emnist_digitsonly`, `fed_cifar100`, `shakespeare`, `stackoverflow`, or files like them.
        predict: of Stack Overflow, `words` or `tags`.
        vocabulary: words that have ids, V; of Stack Overflow.
        tags: labels to predict, T.
        sequence_length: of texts; 80 characters or 20 words where 0.
        max_clients: the first so many of each part by name; 0 for all.
        max_rows: the first so many examples (or snippets) of each client; 0 for all.
        standardize: as of `npz`.

    Raises:
        UserError: h5py is not installed, files are missing or damaged, or of fields that are none of these.
    """
    check_standardize(standardize)
    return gathered(
        stream(
            data_dir,
            file,
            predict=predict,
            vocabulary=vocabulary,
            tags=tags,
            sequence_length=sequence_length,
            max_clients=max_clients,
            max_rows=max_rows,
        ),
        standardize,
    )


def stream(
    data_dir: str | None = None,
    file: str = "fed_emnist",
    *,
    predict: str = "words",
    vocabulary: int = 10_000,
    tags: int = 500,
    sequence_length: int = 0,
    max_clients: int = 0,
    max_rows: int = 0,
) -> Stream:
    """The same, client by client; see `tff_h5`."""
    if not file or predict not in PREDICT:
        raise ValueError(f"file is {file!r} and predict {predict!r}; give a file, and one of {', '.join(PREDICT)}")
    for name, number, least in (
        ("vocabulary", vocabulary, 1),
        ("tags", tags, 1),
        ("sequence_length", sequence_length, 0),
        ("max_clients", max_clients, 0),
        ("max_rows", max_rows, 0),
    ):
        if number < least:
            raise ValueError(f"{name} is {number}; it must be at least {least}")
    root = data_directory(file, data_dir)
    paths = {part: _find(root, file, part) for part in ("train", "test")}
    limits = max_clients, max_rows
    kind = _kind(paths["train"])
    settings: dict[str, Any] = {}
    if kind == "emnist":
        make = lambda fields: _images(fields, "pixels", (28, 28), (28, 28, 1), np.float32)
    elif kind == "cifar":
        make = lambda fields: _images(fields, "image", (32, 32, 3), (32, 32, 3), np.uint8)
        settings = {"num_classes": 100}
    elif kind == "characters":
        make = lambda fields: _characters(fields, sequence_length or 80)
        settings = {"num_classes": VOCABULARY}
    else:
        words = _most_frequent(_words(paths["train"], limits, predict), vocabulary)
        if not words:
            raise UserError(f"{paths['train']}: no example has a word")
        if predict == "words":
            make = lambda fields: _next_words(fields, words, sequence_length or 20)
            spoken = ("(padding)", *map(_shown, words), "(other)", "(begin)", "(end)")
            settings = {"num_classes": len(words) + 4, "counted": True, "class_names": spoken}
        else:
            labels = _most_frequent(_tags(paths["train"], limits), tags)
            if not labels:
                raise UserError(f"{paths['train']}: no example has a tag")
            make = lambda fields: _bags(fields, words, labels)
            settings = {"targets": MARKS, "class_names": tuple(map(_shown, labels))}
            settings["feature_names"] = tuple(map(_shown, words))
        settings["learned"] = ("the vocabulary", *["the tags"] * (predict == "tags"))
    clients = {part: functools.partial(_clients, path, _FIELDS[kind], limits, make) for part, path in paths.items()}
    return Stream(file, str(paths["train"].parent), clients["train"], clients["test"], settings)


def _clients(
    path: Path, fields: Iterable[str], limits: tuple[int, int], make: Callable[[dict[str, Any]], dict[str, np.ndarray]]
) -> Clients:
    """Clients with rows, and their x and y."""
    for name, found in _read(path, fields, *limits):
        try:
            columns = make(found)
        except ValueError as error:
            raise UserError(f"{path}: client {name!r:.80}: {error}") from error
        if len(columns["y"]):
            yield name, columns


def _find(root: Path, file: str, part: str) -> Path:
    for folder in (root, root / file, root / file / "h5"):  # the last is what `fedjax8.fetch` unpacks into
        if (folder / f"{file}_{part}.h5").is_file():
            return folder / f"{file}_{part}.h5"
    raise UserError(
        f"tff_h5: there is no {file}_{part}.h5 in {root} or {root / file}; give another directory with --data_dir, or "
        f"run: python -m fedjax8.fetch {file} --data_dir={root}"
    )


def _kind(path: Path) -> str:
    """Which of `_FIELDS` the first client of a file has."""
    with _examples(path) as examples:
        first = next(iter(examples), None)
        if first is None:
            raise UserError(f"{path}: it holds no clients")
        there = set(_own(examples, first))
    for kind, fields in _FIELDS.items():
        if there.issuperset(fields):
            return kind
    known = "; ".join(", ".join(fields) for fields in _FIELDS.values())
    raise UserError(f"{path}: clients have fields {', '.join(sorted(there)) or 'none'}; known are {known}")


@contextlib.contextmanager
def _examples(path: Path) -> Iterator[Any]:
    """The group `examples` of an open file; any error in reading becomes a UserError that names the file."""
    h5py = optional("h5py", "reading h5 files", "images")
    try:
        with h5py.File(path, "r") as file:
            examples = _own(file, "examples")
            if not isinstance(examples, h5py.Group):
                raise ValueError("its 'examples' is no group")
            yield examples
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, MemoryError) as error:
        raise UserError(f"{path}: not an h5 file of this layout ({' '.join(str(error).split())[:200]})") from error


def _read(path: Path, fields: Iterable[str], max_clients: int, max_rows: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and fields `[n, ...]` of each client."""
    with _examples(path) as examples:
        names = iter(examples)
        for name in itertools.islice(names, max_clients) if max_clients else names:
            found = {}
            for field in fields:
                data = _own(_own(examples, name), field)
                num_bytes = math.prod(data.shape) * data.dtype.itemsize
                if not data.shape or data.external or data.is_virtual or num_bytes > _LARGEST_FIELD:
                    raise ValueError(f"field {field} of client {name!r:.80} is {data.dtype} {data.shape}, or elsewhere")
                if num_bytes > data.id.get_storage_size() * MOST_EXPANSION:
                    raise ValueError(
                        f"field {field} of client {name!r:.80} promises {num_bytes} bytes, stored are fewer"
                    )
                found[field] = data[: max_rows or None]
            lengths = {len(values) for values in found.values()}
            if len(lengths) > 1:
                raise UserError(f"{path}: fields of client {name!r:.80} have lengths {sorted(lengths)}")
            yield name, found


def _own(group: Any, name: str) -> Any:
    """A member of an h5 group; ValueError for a link, which could lead to any other file."""
    if type(group.get(name, getlink=True)).__name__ != "HardLink":
        raise ValueError(f"{name!r:.80} is a link; only what is in the file itself is read")
    return group[name]


def _images(
    fields: Mapping[str, np.ndarray], field: str, shape: tuple[int, ...], row_shape: tuple[int, ...], dtype: Any
) -> dict[str, np.ndarray]:
    x, y = fields[field], fields["label"]
    if x.shape[1:] != shape or x.dtype != dtype or y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(
            f"{field} {x.dtype} {x.shape} and label {y.dtype} {y.shape}; {dtype.__name__} {shape} is needed"
        )
    return {"x": x.reshape(-1, *row_shape), "y": y.astype(np.int32)}


def _characters(fields: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    snippets = [_bytes(snippet) for snippet in fields["snippets"]]
    offset = np.concatenate([[0], np.cumsum([len(snippet) for snippet in snippets], dtype=np.int64)])
    x, y, _ = windows(np.frombuffer(b"".join(snippets), np.uint8), offset, length)
    return {"x": x, "y": y}


def _next_words(fields: Mapping[str, np.ndarray], words: Mapping[bytes, int], length: int) -> dict[str, np.ndarray]:
    other, begin, end = len(words) + 1, len(words) + 2, len(words) + 3
    sentences = [sentence for text in fields["tokens"] if (sentence := _bytes(text).split())]
    x = np.zeros((len(sentences), length), np.int32)
    y = np.full((len(sentences), length), NO_TARGET, np.int32)
    for row, sentence in enumerate(sentences):
        ids = [words[word] + 1 if word in words else other for word in sentence[:length]]
        targets = ids + [end] * (len(ids) < length)
        y[row, : len(targets)] = targets
        x[row, : len(targets)] = [begin, *ids][: len(targets)]
    return {"x": x, "y": y}


def _bags(
    fields: Mapping[str, np.ndarray], words: Mapping[bytes, int], labels: Mapping[bytes, int]
) -> dict[str, np.ndarray]:
    rows = len(fields["tokens"])
    x, y = np.zeros((rows, len(words)), np.float32), np.zeros((rows, len(labels)), np.uint8)
    for row, (tokens, title, given) in enumerate(zip(*(fields[f] for f in _FIELDS["posts"]), strict=True)):
        said = _bytes(tokens).split() + _bytes(title).split()
        for word in said:
            if word in words:
                x[row, words[word]] += 1.0
        x[row] /= max(len(said), 1)
        y[row, [labels[tag] for tag in _bytes(given).split(b"|") if tag in labels]] = 1
    return {"x": x, "y": y}


def _words(path: Path, limits: tuple[int, int], predict: str) -> Iterator[bytes]:
    """All words of a file, in which the vocabulary is counted."""
    fields = ("tokens",) if predict == "words" else ("tokens", "title")
    for _, found in _read(path, fields, *limits):
        for text in itertools.chain.from_iterable(found.values()):
            yield from _bytes(text).split()


def _tags(path: Path, limits: tuple[int, int]) -> Iterator[bytes]:
    for _, found in _read(path, ("tags",), *limits):
        for text in found["tags"]:
            yield from (tag for tag in _bytes(text).split(b"|") if tag)


def _most_frequent(values: Iterable[bytes], most: int) -> dict[bytes, int]:
    """Value -> place among the `most` most frequent ones; ties in alphabetical order."""
    counts = collections.Counter(values)
    ranked = sorted(counts, key=lambda value: (-counts[value], value))
    return {value: place for place, value in enumerate(ranked[:most])}


def _shown(text: bytes) -> str:
    return text.decode("utf-8", "replace")


def _bytes(text: Any) -> bytes:
    """A text of a file; ValueError for anything else."""
    if isinstance(text, str):
        return text.encode()
    if not isinstance(text, bytes):
        raise ValueError(f"a text is {type(text).__name__}")
    return text


EXAMPLES = ({"file": "fed_emnist"}, {"file": "stackoverflow", "max_clients": 100})
