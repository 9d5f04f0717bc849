"""PatchCamelyon: 262,144 + 32,768 color images of lymph nodes, 96 x 96, with or without a tumor in the middle.

Veeling et al., Rotation equivariant CNNs for digital pathology, MICCAI 2018. Its validation part is not used. Of the
rows that are asked for, 27,648 bytes each are kept in memory: 7.2 GB for all training rows, 0.55 GB for the 20,000 of
the code of FedPEFT (Sun et al., arXiv 2210.01708). The files are read in pieces of 113 MB.
"""

from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset, check_wanted, drawn_rows
from fedjax8.data.sources._files import data_directory, missing_set
from fedjax8.errors import UserError
from fedjax8.readers.arrays import read_npz

_FILES = "camelyonpatch_level_2_split_{part}_{column}.h5"
_KEYS = [(part, column) for part in ("train", "test") for column in "xy"]
_ROWS_AT_ONCE = 4096


def pcam(data_dir: str | None = None, *, rows: int = 0, test_rows: int = 0, seed: int = 0) -> Dataset:
    """The set from `pcam.npz`, or from the four official h5 files, unpacked: x [N, 96, 96, 3] uint8, 2 classes.

    Args:
        data_dir: None for `$FEDJAX8_DATA`; the files lie there or in its folder `pcam`.
        rows: training rows to draw, without replacement and in their order in the file; 0 for all.
        test_rows: test rows to draw; 0 for all.
        seed: of the draw. Mean and deviation are measured on the training rows that are used.

    Raises:
        UserError: h5py is not installed and there is no npz; files that are missing, damaged or of another set; fewer
            rows than are asked for.
    """
    check_wanted(rows=rows, test_rows=test_rows)
    root, wanted = data_directory("pcam", data_dir), {"train": rows, "test": test_rows}
    for folder in (root, root / "pcam"):
        if (folder / "pcam.npz").is_file():
            return _from_npz(folder / "pcam.npz", wanted, seed)
    for folder in (root / "pcam", root):
        paths = {key: folder / _FILES.format(part=key[0], column=key[1]) for key in _KEYS}
        if all(path.is_file() for path in paths.values()):
            return _from_h5(folder, paths, wanted, seed)
    raise missing_set("pcam", root, ("pcam.npz", *(_FILES.format(part=p, column=c) for p, c in _KEYS)))


def _from_npz(path: Path, wanted: dict[str, int], seed: int) -> Dataset:
    arrays = read_npz(path, [f"{column}_{part}" for part, column in _KEYS])
    kept = drawn_rows(str(path), seed, {part: len(arrays[f"x_{part}"]) for part in wanted}, wanted)
    chosen = {f"{column}_{part}": arrays[f"{column}_{part}"][kept[part]] for part, column in _KEYS}
    return build_dataset("pcam", str(path), chosen, num_classes=2, row_shape=(96, 96, 3))


def _from_h5(folder: Path, paths: dict[tuple[str, str], Path], wanted: dict[str, int], seed: int) -> Dataset:
    try:
        import h5py
    except ImportError as error:
        raise UserError(f"the h5 files in {folder} need h5py: pip install 'fedjax8[images]'") from error
    arrays: dict[str, np.ndarray] = {}
    files: list[Any] = []
    try:
        for path in paths.values():
            files.append(h5py.File(path, "r"))
        stored = {key: file[key[1]] for key, file in zip(paths, files, strict=True)}
        kept = drawn_rows(str(folder), seed, {part: len(stored[part, "x"]) for part in wanted}, wanted)
        for (part, column), data in stored.items():
            if len(data) != len(stored[part, "x"]):
                raise UserError(f"{paths[part, column]}: {len(data)} labels for {len(stored[part, 'x'])} images")
            arrays[f"{column}_{part}"] = _rows_of(data, kept[part])
    except (OSError, KeyError) as error:
        path = paths[_KEYS[len(files)]] if len(files) < len(_KEYS) else folder
        raise UserError(f"{path}: cannot be read as the h5 files of pcam ({' '.join(str(error).split())})") from error
    finally:
        for file in files:
            file.close()
    for part in wanted:  # labels are [N, 1, 1, 1]
        arrays[f"y_{part}"] = arrays[f"y_{part}"].reshape(len(arrays[f"y_{part}"]), -1)
    return build_dataset("pcam", str(folder), arrays, num_classes=2, row_shape=(96, 96, 3))


def _rows_of(data: Any, rows: np.ndarray) -> np.ndarray:
    """The ascending rows of an h5 data set, by blocks: single rows would unpack a block of the file each."""
    out = np.empty((len(rows), *data.shape[1:]), data.dtype)
    for first in range(0, len(data), _ROWS_AT_ONCE):
        begin, end = np.searchsorted(rows, (first, first + _ROWS_AT_ONCE))
        if begin < end:
            out[begin:end] = data[first : first + _ROWS_AT_ONCE][rows[begin:end] - first]
    return out


EXAMPLES = ({"rows": 2000, "test_rows": 1000},)
