"""Readers for the file formats data sets come in: idx, CIFAR binary, npz and wav.

Each returns NumPy arrays as stored. A damaged or wrong file raises a `UserError` that names the
file and the problem, whatever is in it: sizes that a header promises are held against those of the file
before memory is taken for them, and a member that would unpack to more than a file of its kind may is refused. Nothing
is ever unpickled and archives are read in place, never extracted.
"""

import contextlib
import gzip
import io
import math
import struct
import tarfile
import wave
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedjax8.errors import UserError

MAP_ABOVE_BYTES = 1 << 30  # npz members this large are mapped rather than read, where they are stored uncompressed
MOST_EXPANSION = 1032
"""Most bytes into which deflate expands one."""
MOST_UNPACKED_BYTES = 1 << 32
"""Of a compressed array or archive; larger ones are stored uncompressed, and then mapped."""
MOST_MEMBER_BYTES = 1 << 30
"""Of one file in an archive; those of CIFAR have up to 154 MB."""
MOST_WAV_BYTES = 1 << 26
"""35 minutes of speech."""
_BLOCK_BYTES = 1 << 20
_IDX_UINT8 = 0x08
_CIFAR_PIXELS = 3 * 32 * 32


def read_idx(path: str | Path, num_dims: int) -> np.ndarray:
    """The uint8 array of `num_dims` dimensions in an idx file, gzipped or not.

    Layout, big-endian: two zero bytes, element type (8 = uint8), number of dimensions, each length as int32,
    elements. (LeCun, Cortes and Burges, The MNIST database.)
    """
    path = Path(path)
    with reading(path, "damaged or truncated gzip file" if path.suffix == ".gz" else "cannot be read"):
        stored = path.stat().st_size
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _idx_array(path, file, num_dims, stored)  # type: ignore[arg-type]  # GzipFile reads as a file does


def _idx_array(path: Path, file: BinaryIO, num_dims: int, stored: int) -> np.ndarray:
    """The array in an open idx file of `stored` bytes, compressed where its name says so."""
    head = file.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        raise UserError(f"{path}: not an idx file (its magic number is {head.hex() or 'missing'})")
    if head[2] != _IDX_UINT8 or head[3] != num_dims:
        raise UserError(
            f"{path}: idx magic number {head.hex()}, expected {bytes([0, 0, _IDX_UINT8, num_dims]).hex()} "
            f"(uint8, {num_dims} dimensions); is this the file for images or for labels?"
        )
    lengths = file.read(4 * num_dims)
    if len(lengths) < 4 * num_dims:
        raise UserError(f"{path}: truncated inside its {4 + 4 * num_dims}-byte header")
    shape = struct.unpack(f">{num_dims}I", lengths)
    size, most = math.prod(shape), stored * (MOST_EXPANSION if path.suffix == ".gz" else 1)
    if size > most:
        found = f"at most {most}" if path.suffix == ".gz" else f"found {stored - 4 - 4 * num_dims}"
        raise UserError(f"{path}: truncated: shape {shape} needs {size} bytes of data, {found}")
    data = file.read(size)
    if len(data) < size:
        raise UserError(f"{path}: truncated: shape {shape} needs {size} bytes of data, found {len(data)}")
    if file.read(1):
        raise UserError(f"{path}: too long: shape {shape} needs {size} bytes of data, found more")
    return np.frombuffer(data, np.uint8).reshape(shape)


def read_cifar_folder(folder: str | Path, names: Collection[str], label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """`(x [N, 32, 32, 3] uint8, y [N] uint8)` of the named CIFAR binary files, one after the other."""
    return _cifar_arrays({str(Path(folder) / name): _read(Path(folder) / name) for name in names}, label_bytes)


def read_cifar_archive(
    path: str | Path, parts: Mapping[str, Collection[str]], label_bytes: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """As `read_cifar_folder` for each part (name -> file names), from a tar archive, gzipped or not.

    Members are found by their last path component, whatever folder the archive keeps them in.
    """
    path = Path(path)
    wanted, found, unpacked = {name for names in parts.values() for name in names}, {}, 0
    with reading(path, "damaged or truncated archive"), tarfile.open(path, "r:*") as archive:
        for member in archive:
            name, unpacked = member.name.rpartition("/")[2], unpacked + member.size
            if unpacked > MOST_UNPACKED_BYTES or (name in wanted and member.size > MOST_MEMBER_BYTES):
                raise UserError(
                    f"{path}: {name} of {member.size} bytes is too large for an archive of CIFAR; fetch it again"
                )
            # A sparse member may say that it has any size.
            if name in wanted and member.isfile() and not member.issparse() and (file := archive.extractfile(member)):
                found[name] = file.read()
        # The checksum of compressed data stands behind the archive's end, where tarfile stops.
        while unpacked <= MOST_UNPACKED_BYTES and (rest := archive.fileobj.read(_BLOCK_BYTES)):
            unpacked += len(rest)
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
    with reading(path, "cannot be read"):
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path}: not an npz file, or truncated (no zip directory at its end)")
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            missing = [name for name in required if name not in members]
            if missing:
                raise UserError(f"{path}: lacks {', '.join(missing)}; it holds {', '.join(members) or 'nothing'}")
            for name in [*required, *(name for name in optional if name in members)]:
                info = archive.getinfo(members[name])
                _check_member(path, info)
                stored = info.compress_type == zipfile.ZIP_STORED
                if stored and info.file_size >= map_above_bytes:
                    arrays[name] = _map_member(path, info)
                else:
                    with archive.open(info) as file:
                        arrays[name] = _read_array(file, info.file_size)
    return arrays


def read_wav(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """[samples] int16, at least one: the samples of a RIFF wav file, which must be 16-bit PCM and mono.

    Args:
        path: of the file.
        sample_rate: that the file must have, in Hz; nothing is resampled.
    """
    path = Path(path)
    with reading(path, "cannot be read"):
        if (length := path.stat().st_size) > MOST_WAV_BYTES:
            raise UserError(f"{path}: {length} bytes, of {MOST_WAV_BYTES} at most; cut the recording into clips")
        raw = path.read_bytes()
    # `wave` knows uncompressed PCM alone and calls everything else an unknown format.
    with reading(path, "not a PCM wav file, or truncated"), wave.open(io.BytesIO(raw)) as file:
        channels, sample_bytes, rate, promised = file.getparams()[:4]
        data = file.readframes(promised)
    if (channels, 8 * sample_bytes) != (1, 16):
        raise UserError(f"{path}: {channels} channels of {8 * sample_bytes} bits; only mono of 16 bits is read")
    if rate != sample_rate:
        raise UserError(f"{path}: sampled at {rate} Hz, but {sample_rate} Hz is needed; resample it first")
    if len(data) != 2 * promised or not promised:
        problem = "truncated" if promised else "empty"
        raise UserError(f"{path}: {problem}: its header promises {promised} samples, found {len(data) // 2}")
    return np.frombuffer(data, "<i2").astype(np.int16, copy=False)


def _check_member(path: Path, info: zipfile.ZipInfo) -> None:
    """UserError for a member that promises more bytes than it can have, or than are unpacked into memory."""
    most = info.compress_size if info.compress_type == zipfile.ZIP_STORED else info.compress_size * MOST_EXPANSION
    if info.file_size > most or info.compress_size > path.stat().st_size:
        raise UserError(
            f"{path}: cannot be read ({info.filename} promises {info.file_size} bytes and stores {info.compress_size})"
        )
    if info.compress_type != zipfile.ZIP_STORED and info.file_size > MOST_UNPACKED_BYTES:
        raise UserError(
            f"{path}: {info.filename} unpacks to {info.file_size} bytes, of {MOST_UNPACKED_BYTES} at most; write it "
            "with numpy.savez, which does not compress and is mapped"
        )


def _array_header(file: Any, length: int, begin: int = 0) -> tuple[tuple[int, ...], bool, np.dtype, int]:
    """Shape, order, dtype of an npy file of `length` bytes, and where its data begin; ValueError unless they fit."""
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
    header = file.tell() - begin
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != length - header:
        raise ValueError(f"{dtype} {shape} does not take the {length - header} bytes that there are")
    return shape, fortran_order, dtype, header


def _read_array(file: Any, length: int) -> np.ndarray:
    """The array of an npy file of `length` bytes; all of it is read, so that checksums are compared."""
    shape, fortran_order, dtype, header = _array_header(file, length)
    data, got = np.empty(length - header, np.uint8), 0
    while block := file.read(min(_BLOCK_BYTES, len(data) - got)):  # not all at once, which would take it twice
        data[got : got + len(block)] = np.frombuffer(block, np.uint8)
        got += len(block)
    if got != len(data) or file.read(1):
        raise ValueError("its length is another than promised")
    flat = data.view(dtype) if got else np.zeros(math.prod(shape), dtype)
    return flat.reshape(shape, order="F" if fortran_order else "C")


def _map_member(path: Path, info: zipfile.ZipInfo) -> np.ndarray:
    """Memory map of a stored (uncompressed) npz member."""
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)  # of the 30-byte local header, the last two fields: name and extra length
        name_bytes, extra_bytes = struct.unpack("<HH", file.read(4))
        begin = info.header_offset + 30 + name_bytes + extra_bytes
        file.seek(begin)
        shape, fortran_order, dtype, _ = _array_header(file, info.file_size, begin)
        if not math.prod(shape):
            return np.zeros(shape, dtype)
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


def _read(path: Path) -> bytes:
    with reading(path, "cannot be read"):
        return path.read_bytes()


@contextlib.contextmanager
def reading(path: Path, problem: str) -> Iterator[None]:
    """Turns errors in the block into a `UserError` that names the file and the problem.

    Decoders of formats, given damaged or hostile files, raise almost anything.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
    except Exception as error:
        raise UserError(
            f"{path}: {problem} ({_reason(error)})" + "; fetch it again" * ("damaged" in problem)
        ) from error


def _reason(error: BaseException) -> str:
    """The error's own words on one line."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(words.split())
