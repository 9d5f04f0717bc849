"""Next-character prediction on Shakespeare's plays; every speaking role is a client.

McMahan et al., Communication-efficient learning of deep networks from decentralized data, AISTATS 2017; Caldas et al.,
LEAF, arXiv:1812.01097. As there, sequences of 80 characters; the split is that of the file.

Read from `shakespeare.npz`: `text_train`, `text_test` uint8 [bytes] and `offset_train`, `offset_test` [roles + 1], such
that role r says `text[offset[r] : offset[r + 1]]`; an empty text gives no rows. A text is cut into windows that do not
overlap, and each of its characters is the target exactly once:

    x = begin t_0 t_1 ... t_78 | t_79 ... t_158 | ...          y = t_0 t_1 ... t_79 | t_80 ... t_159 | ...

The last window is filled up with the id `PADDING` in x and `NO_TARGET` in y. Ids: 0 padding, 1 begin, 2 end (never
used here), 3 to 88 the characters of `CHARACTERS`, 89 any other. These are the 86 characters of the text generation
tutorial of TensorFlow Federated, in the order of their codes; with four special ids they make 90 symbols, as there.
"""

from pathlib import Path

import numpy as np

from fedjax8.data.checks import NO_TARGET
from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset
from fedjax8.data.sources._files import data_directory, missing_set
from fedjax8.errors import UserError
from fedjax8.readers.arrays import read_npz

_NAME = "shakespeare"
PADDING, BEGIN, END = 0, 1, 2
CHARACTERS = "\n\r !\"#$%&'()*,-./0123456789:;?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[]_abcdefghijklmnopqrstuvwxyz"  # 86 of them
UNKNOWN = END + 1 + len(CHARACTERS)
VOCABULARY = UNKNOWN + 1
_PARTS = ("train", "test")


def shakespeare(data_dir: str | None = None, *, sequence_length: int = 80) -> Dataset:
    """The plays, with x and y int32 [N, sequence_length] of ids below 90; rows are sorted by role, then as spoken.

    Args:
        data_dir: holds `shakespeare.npz` or `shakespeare/shakespeare.npz`; None for `$FEDJAX8_DATA`.
        sequence_length: characters in a row, at least 2.
    """
    if sequence_length < 2:
        raise ValueError(f"sequence_length is {sequence_length}; it must be at least 2")
    root = data_directory(_NAME, data_dir)
    path = next((p for p in (root / f"{_NAME}.npz", root / _NAME / f"{_NAME}.npz") if p.is_file()), None)
    if path is None:
        raise missing_set(_NAME, root, (f"{_NAME}.npz",))
    found = read_npz(path, [f"{kind}_{part}" for part in _PARTS for kind in ("text", "offset")])
    arrays = {}
    for part in _PARTS:
        text, offset = found[f"text_{part}"], found[f"offset_{part}"]
        _check(path, part, text, offset)
        arrays |= zip((f"x_{part}", f"y_{part}", f"client_{part}"), windows(text, offset, sequence_length), strict=True)
    return build_dataset(_NAME, str(path), arrays, num_classes=VOCABULARY)


def bytes_of(text: str) -> np.ndarray:
    """uint8 [characters]: the codes of a text's characters, 255 for those beyond."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return np.minimum(codes, 255).astype(np.uint8)


def ids_of(text: np.ndarray) -> np.ndarray:
    """int32 [bytes]: the id of each byte of a text uint8, `UNKNOWN` for those that are none of `CHARACTERS`."""
    ids = np.full(256, UNKNOWN, np.int32)
    ids[np.frombuffer(CHARACTERS.encode("ascii"), np.uint8)] = np.arange(END + 1, UNKNOWN)
    return ids[text]


def windows(text: np.ndarray, offset: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs and targets int32 [N, length] and owners int32 [N], of the texts `text[offset[r] : offset[r + 1]]`.

    N is the sum of ceil(size / length) over the texts.
    """
    sizes = np.diff(offset)
    counts = -(-sizes // length)
    firsts = (np.cumsum(counts) - counts) * length  # where each text begins among the rows, read as one line
    place = np.arange(len(text)) + np.repeat(firsts - offset[:-1], sizes)
    y = np.full(int(counts.sum()) * length, NO_TARGET, np.int32)
    y[place] = ids_of(text)
    x = np.full(len(y), PADDING, np.int32)
    x[1:] = np.where(y[1:] >= 0, y[:-1], PADDING)
    x[firsts[sizes > 0]] = BEGIN
    owners = np.repeat(np.arange(len(sizes), dtype=np.int32), counts)
    return x.reshape(-1, length), y.reshape(-1, length), owners


def _check(path: Path, part: str, text: np.ndarray, offset: np.ndarray) -> None:
    if text.dtype != np.uint8 or text.ndim != 1:
        raise UserError(f"{path}: text_{part} is {text.dtype} {text.shape}; it must be [bytes] uint8")
    fits = offset.dtype.kind in "iu" and offset.ndim == 1 and len(offset) > 1
    if not fits or offset[0] != 0 or offset[-1] != len(text) or np.any(offset[1:] < offset[:-1]):
        raise UserError(
            f"{path}: offset_{part} ({offset.dtype} {offset.shape}) must be integers that rise from 0 to the "
            f"{len(text)} bytes of text_{part}, one more than there are roles"
        )


EXAMPLES = ({}, {"sequence_length": 20})
