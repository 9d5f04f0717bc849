"""Readers for the file formats data sets come in: idx, CIFAR binary, npz and wav.

Each returns NumPy arrays as stored. A file that is not what it should be raises a `UserError` that names the
file and says what is wrong with it. Nothing is ever unpickled and archives are read in place, never
extracted.
"""

import gzip
import io
import math
import struct
import tarfile
import wave
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from fedjax8.errors import UserError

MAP_ABOVE_BYTES = 1 << 30  # npz members this large are mapped rather than read, where they are stored uncompressed
_UNREADABLE = (OSError, EOFError, zlib.error, tarfile.TarError)  # gzip.BadGzipFile is an OSError
_IDX_UINT8 = 0x08
_CIFAR_PIXELS = 3 * 32 * 32


def read_idx(path: str | Path, num_dims: int) -> np.ndarray:
    """The uint8 array of `num_dims` dimensions in an idx file, gzipped or not.

    Layout, big-endian: two zero bytes, element type (8 = uint8), number of dimensions, each length as int32,
    elements. (LeCun, Cortes and Burges, The MNIST database.)
    """
    raw = _read_maybe_gzipped(Path(path))
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise UserError(f"{path}: not an idx file (its magic number is {raw[:4].hex() or 'missing'})")
    if raw[2] != _IDX_UINT8 or raw[3] != num_dims:
        raise UserError(
            f"{path}: idx magic number {raw[:4].hex()}, expected {bytes([0, 0, _IDX_UINT8, num_dims]).hex()} "
            f"(uint8, {num_dims} dimensions); is this the file for images or for labels?"
        )
    header = 4 + 4 * num_dims
    if len(raw) < header:
        raise UserError(f"{path}: truncated inside its {header}-byte header")
    shape = struct.unpack(f">{num_dims}I", raw[4:header])
    if len(raw) - header != math.prod(shape):
        problem = "truncated" if len(raw) - header < math.prod(shape) else "too long"
        raise UserError(
            f"{path}: {problem}: shape {shape} needs {math.prod(shape)} bytes of data, found {len(raw) - header}"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_cifar_folder(folder: str | Path, names: Collection[str], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """`(x [N, 32, 32, 3] uint8, y [N] uint8)` of the named CIFAR binary files, one after the other."""
    return _cifar_arrays({str(Path(folder) / name): _read(Path(folder) / name) for name in names}, label_bytes)


def read_cifar_archive(
    path: str | Path, parts: Mapping[str, Collection[str]], label_bytes: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """As `read_cifar_folder` for each part (name -> file names), from a tar archive, gzipped or not.

    Members are found by their last path component, whatever folder the archive keeps them in.
    """
    wanted, found = {name for names in parts.values() for name in names}, {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                name = member.name.rpartition("/")[2]
                if name in wanted and member.isfile() and (file := archive.extractfile(member)):
                    found[name] = file.read()
    except _UNREADABLE as error:
        raise UserError(f"{path}: damaged or truncated archive ({_reason(error)}); fetch it again") from error
    missing = sorted(wanted - set(found))
    if missing:
        raise UserError(f"{path}: the archive lacks {', '.join(missing)}")
    return {
        part: _cifar_arrays({f"{path}:{name}": found[name] for name in names}, label_bytes)
        for part, names in parts.items()
    }


def read_npz(
    path: str | Path,
    required: Collection[str],
    optional: Collection[str] = (),
    *,
    map_above_bytes: int = MAP_ABOVE_BYTES,
) -> dict[str, np.ndarray]:
    """The named arrays of an npz file: all of `required`, and those of `optional` that are there.

    Arrays of `map_above_bytes` or more that the file stores uncompressed (as `numpy.savez` does) come
    memory-mapped and read-only, so a set larger than memory can be used.
    """
    path, arrays = Path(path), {}
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not an npz file, or truncated (no zip directory at its end)")
        with np.load(path, allow_pickle=False) as members:
            missing = [name for name in required if name not in members.files]
            if missing:
                raise UserError(f"{path}: lacks {', '.join(missing)}; it holds {', '.join(members.files) or 'nothing'}")
            for name in [*required, *(name for name in optional if name in members.files)]:
                info = members.zip.getinfo(f"{name}.npy")
                stored = info.compress_type == zipfile.ZIP_STORED
                arrays[name] = (
                    _map_member(path, info) if stored and info.file_size >= map_above_bytes else members[name]
                )
    except UserError:
        raise
    except (*_UNREADABLE, zipfile.BadZipFile, ValueError, KeyError, struct.error) as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
    return arrays


def read_wav(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """[samples] int16, at least one: the samples of a RIFF wav file, which must be 16-bit PCM and mono.

    Args:
        path: of the file.
        sample_rate: that the file must have, in Hz; nothing is resampled.
    """
    raw = _read(Path(path))
    try:
        with wave.open(io.BytesIO(raw)) as file:
            channels, sample_bytes, rate, promised = file.getparams()[:4]
            data = file.readframes(promised)
    except (*_UNREADABLE, wave.Error, struct.error, RuntimeError) as error:  # the last for a chunk beyond its file
        # `wave` knows uncompressed PCM alone and calls everything else an unknown format.
        raise UserError(f"{path}: not a PCM wav file, or truncated ({_reason(error)})") from error
    if (channels, 8 * sample_bytes) != (1, 16):
        raise UserError(f"{path}: {channels} channels of {8 * sample_bytes} bits; only mono of 16 bits is read")
    if rate != sample_rate:
        raise UserError(f"{path}: sampled at {rate} Hz, but {sample_rate} Hz is needed; resample it first")
    if len(data) != 2 * promised or not promised:
        problem = "truncated" if promised else "empty"
        raise UserError(f"{path}: {problem}: its header promises {promised} samples, found {len(data) // 2}")
    return np.frombuffer(data, "<i2").astype(np.int16, copy=False)


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Memory map of a stored (uncompressed) npz member."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # of the 30-byte local header, the last two fields: name and extra length
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        file.seek(info.header_offset + 30 + name_bytes + extra_bytes)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        version = np.lib.format.read_magic(file)
        if version not in read_header:
            raise ValueError(f"npy version {version}")
        shape, fortran_order, dtype = read_header[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never unpickled")
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran_order else "C")


def _cifar_arrays(files: Mapping[str, bytes], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Records of `label_bytes` labels, the last the one that counts, and 3 planes of 32 x 32 pixels."""
    record, images, labels = label_bytes + _CIFAR_PIXELS, [], []
    for name, raw in files.items():
        if not raw or len(raw) % record:
            raise UserError(
                f"{name}: {len(raw)} bytes are not a whole number of {record}-byte records (at least one); "
                "the file is truncated or not CIFAR binary"
            )
        rows = np.frombuffer(raw, np.uint8).reshape(-1, record)
        labels.append(rows[:, label_bytes - 1])
        images.append(rows[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def _read_maybe_gzipped(path: Path) -> bytes:
    raw = _read(path)
    if path.suffix != ".gz":
        return raw
    try:
        return gzip.decompress(raw)
    except _UNREADABLE as error:
        raise UserError(f"{path}: damaged or truncated gzip file ({_reason(error)}); fetch it again") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    """The error's own words on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())
