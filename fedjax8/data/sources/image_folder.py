"""Images in folders, one folder a class: RESISC45, EuroSAT, your own.

    DATA/FOLDER/airport/airport_001.jpg          or with a split of its own
    DATA/FOLDER/beach/beach_001.jpg              DATA/FOLDER/train/airport/..., DATA/FOLDER/test/airport/...

Classes are numbered in the order of their names. Without a split of its own a share of each class is drawn for testing,
by the seed and the sorted names of the files alone. PNG and JPEG files are read, and by these two decoders alone,
whatever a file's name says. Images become RGB of one size (bilinear; an image that is not square is squeezed; gray of
16 bits is divided by 257; transparency is dropped) and stay in memory as uint8: rows * size * size * 3 bytes, which is
4.7 GB for the 31,500 images of RESISC45 (Cheng, Han and Lu, Proc. IEEE 105(10), 2017) at 224 x 224. They are decoded at
every start; to do that once, write `image_folder(...)` to an `.npz` by `numpy.savez`, which the source `npz` maps from
the disk.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from fedjax8.data.federated import Dataset
from fedjax8.data.sources._build import build_dataset
from fedjax8.data.sources._files import data_directory
from fedjax8.errors import UserError
from fedjax8.lookup import optional

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
"""Formats that are decoded. Pillow knows many more formats by their first bytes, some of which start other programs."""
MOST_PIXELS = 1 << 26
"""Of an image: 8192 x 8192, 192 MiB once unpacked. A small file can promise far more."""
_GRAY_16 = 257
"""65535 / 255."""
PARTS = ("train", "test")


def image_folder(
    data_dir: str | None = None, folder: str = "", *, size: int = 224, test_fraction: float = 0.2, seed: int = 0
) -> Dataset:
    """The images in a folder of the data directory: x [N, size, size, 3] uint8; a log line counts other files.

    Args:
        data_dir: None for `$FEDJAX8_DATA`.
        folder: with a folder for each class, or with `train` and `test`; needed.
        size: pixels along a side.
        test_fraction: share of each class drawn for testing, between 0 and 1; not used where there is a split.
        seed: of that draw.

    Raises:
        UserError: Pillow is not installed; no such folder, none of classes or one without images, another class in
            `test`, an image that cannot be read, is of another format or of too many pixels.
    """
    if not folder:
        raise ValueError("folder is empty; it must be one in the data directory with a folder for each class")
    if size < 1:
        raise ValueError(f"size is {size}; it must be at least 1")
    if not 0.0 < test_fraction < 1.0:
        raise ValueError(f"test_fraction is {test_fraction}; it must lie strictly between 0 and 1")
    root = data_directory(folder, data_dir) / folder
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; it must hold a folder for each class, or train and test")
    if all((root / part).is_dir() for part in PARTS):
        found = {part: _files_by_class(root / part) for part in PARTS}
        _say_passed_over(root, sorted(path for path in root.iterdir() if path.name not in PARTS))
        classes = list(found["train"])
        other = [name for name in found["test"] if name not in classes]
        if other:
            raise UserError(f"{root / 'test'} has a class {other[0]!r} that {root / 'train'} has not")
    else:
        whole = _files_by_class(root)
        classes, found = list(whole), _draw(whole, test_fraction, seed)
    arrays = {}
    for part, files in found.items():
        paths = [path for name in files for path in files[name]]
        arrays[f"x_{part}"] = _read_images(paths, size)
        arrays[f"y_{part}"] = np.repeat([classes.index(n) for n in files], [len(f) for f in files.values()])
    return build_dataset(folder, str(root), arrays, num_classes=len(classes))


def _files_by_class(root: Path) -> dict[str, list[Path]]:
    """Images of each class, both sorted by name. Skipped files are counted in the log."""
    try:
        entries = sorted(root.iterdir())
        folders = [path for path in entries if path.is_dir() and not path.name.startswith((".", "_"))]
        inside = {folder.name: sorted(folder.iterdir()) for folder in folders}
    except OSError as error:
        raise UserError(f"{root}: cannot be read ({error.strerror}: {error.filename})") from error
    if not folders:
        raise UserError(f"{root} holds no folders; it must hold one for each class")
    found = {name: [p for p in paths if p.suffix.lower() in SUFFIXES and p.is_file()] for name, paths in inside.items()}
    for name, files in found.items():
        if not files:
            raise UserError(f"{root / name} holds no images; a folder of a class needs files {', '.join(SUFFIXES)}")
    used = {path for files in found.values() for path in files} | set(folders)
    others = [path for path in (*entries, *(p for paths in inside.values() for p in paths)) if path not in used]
    _say_passed_over(root, others)
    return found


def _say_passed_over(root: Path, others: list[Path]) -> None:
    if others:
        logging.getLogger(__name__).warning(
            "%s: %d skipped, such as %s; images are files %s in a folder for each class, whose name does not begin "
            "with _ or .",
            root,
            len(others),
            others[0].relative_to(root),
            ", ".join(SUFFIXES),
        )


def _draw(whole: dict[str, list[Path]], fraction: float, seed: int) -> dict[str, dict[str, list[Path]]]:
    """A share of each class for testing, rounded, but at least one image; at least one stays for training."""
    rng = np.random.default_rng(seed)
    found: dict[str, dict[str, list[Path]]] = {part: {} for part in PARTS}
    for name, files in whole.items():
        if len(files) < 2:
            raise UserError(f"{files[0].parent} holds one image; a class needs two, one of them for testing")
        number = min(max(round(fraction * len(files)), 1), len(files) - 1)
        tested = set(rng.choice(len(files), number, replace=False).tolist())
        for part in PARTS:
            found[part][name] = [path for i, path in enumerate(files) if (i in tested) == (part == "test")]
    return found


def _read_images(paths: list[Path], size: int) -> np.ndarray:
    """[N, size, size, 3] uint8."""
    optional("PIL", "reading images", "images")
    try:
        images = np.empty((len(paths), size, size, 3), np.uint8)
    except (MemoryError, ValueError) as error:
        raise UserError(
            f"{len(paths)} images of size {size} take {len(paths) * size * size * 3 / 1e9:.1f} GB, more than there is; "
            "choose a smaller size"
        ) from error
    for row, path in zip(images, paths, strict=True):
        row[:] = open_image(path, str(path), 3, (size, size))
    return images


def open_image(file: Any, where: str, channels: int = 3, size: tuple[int, int] | None = None) -> np.ndarray:
    """[H, W, channels] uint8 of a PNG or JPEG file, or an open one.

    Args:
        file: a path, or a file open for reading.
        where: of it, for errors.
        channels: 1 for gray, 3 for color, 0 for as many as the image has.
        size: width and height to which it is resized (bilinear); None to leave it.
    """
    pillow = optional("PIL.Image", "reading images", "images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow's own limit, which is about ours
            with pillow.open(file, formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise ValueError(f"{image.width} x {image.height} pixels, of {MOST_PIXELS} at most")
                gray = channels == 1 or (not channels and image.mode[:1] in ("1", "L", "I"))
                image = _colored(image, pillow)
                image = image.convert("L") if gray else image
                image = image if size is None else image.resize(size, pillow.Resampling.BILINEAR)
                return np.asarray(image).reshape(image.height, image.width, 1 if gray else 3)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise UserError(
            f"{where}: not a readable image of {' or '.join(FORMATS)} ({' '.join(str(error).split())})"
        ) from error


def _colored(image: Any, pillow: Any) -> Any:
    """The image as RGB of 8 bits; ValueError for pixels that Pillow would not scale to them."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)  # of a PNG, which has 16 bits at most
        image = pillow.fromarray(((values + _GRAY_16 // 2) // _GRAY_16).astype(np.uint8))
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        raise ValueError(f"its pixels are {image.mode}; save it with 8 or 16 bits a channel")
    return image.convert("RGB")


EXAMPLES = ({"folder": "NWPU-RESISC45", "size": 64},)
