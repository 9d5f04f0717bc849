"""File formats, written here byte by byte and read back; and every way a file can be wrong."""

import gzip
import io
import struct
import tarfile
import wave

import numpy as np
import pytest

from fedjax8.errors import UserError
from fedjax8.readers.arrays import read_cifar_archive, read_cifar_folder, read_idx, read_npz, read_wav

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 4, 3)).astype(np.uint8)
# An idx file by hand: magic number, three lengths as big-endian 32-bit integers, bytes in C order.
IDX = bytes([0, 0, 8, 3]) + b"\0\0\0\5" + b"\0\0\0\4" + b"\0\0\0\3" + IMAGES.tobytes()


def refused(reader, *arguments, **settings):
    """The message with which the file is refused; one line."""
    with pytest.raises(UserError) as raised:
        reader(*arguments, **settings)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["images", "images.gz"])
def test_idx_files_are_read_plain_and_gzipped(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(gzip.compress(IDX) if name.endswith(".gz") else IDX)
    array = read_idx(path, 3)
    assert array.dtype == np.uint8
    np.testing.assert_array_equal(array, IMAGES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not an idx file"),
        (b"PK\3\4" + IDX, "not an idx file"),
        (bytes([0, 0, 13, 3]) + IDX[4:], "00000d03, expected 00000803"),
        (bytes([0, 0, 8, 1]) + IDX[4:], "00000801, expected 00000803"),
        (IDX[:10], "truncated inside its 16-byte header"),
        (IDX[:-1], "truncated: shape .5, 4, 3. needs 60 bytes of data, found 59"),
        (IDX + b"\0", "too long"),
        (IDX[:4] + b"\xff" * 12 + IDX[16:], "truncated"),
    ],
)
def test_malformed_idx_files_are_named_with_the_reason(tmp_path, content, says):
    path = tmp_path / "images"
    path.write_bytes(content)
    message = refused(read_idx, path, 3)
    assert message.startswith(f"{path}: ")
    with pytest.raises(UserError, match=says):
        read_idx(path, 3)


@pytest.mark.parametrize("damage", ["cut", "flipped", "not gzip"])
def test_damaged_gzip_files_are_named(tmp_path, damage):
    packed = gzip.compress(IDX)
    path = tmp_path / "images.gz"
    flipped = packed[:-5] + bytes([packed[-5] ^ 255]) + packed[-4:]
    path.write_bytes({"cut": packed[:-12], "flipped": flipped, "not gzip": IDX}[damage])
    assert f"{path}: damaged or truncated gzip file" in refused(read_idx, path, 3)


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in refused(read_idx, tmp_path / "nothing", 1)


def cifar_records(images, *labels):
    """Label bytes, then the red, the green and the blue plane of each image."""
    planes = [b"".join(image[:, :, c].tobytes() for c in range(3)) for image in images]
    heads = [bytes(row) for row in zip(*labels, strict=True)]
    return b"".join(head + body for head, body in zip(heads, planes, strict=True))


@pytest.fixture
def cifar():
    images = RNG.integers(0, 256, (4, 32, 32, 3)).astype(np.uint8)
    return images, [3, 0, 9, 1], [70, 99, 0, 5]


def test_cifar_files_are_joined_in_the_order_given(tmp_path, cifar):
    images, labels, _ = cifar
    (tmp_path / "b.bin").write_bytes(cifar_records(images[:1], labels[:1]))
    (tmp_path / "a.bin").write_bytes(cifar_records(images[1:], labels[1:]))
    x, y = read_cifar_folder(tmp_path, ["b.bin", "a.bin"], 1)
    np.testing.assert_array_equal(x, images)
    assert y.tolist() == labels and x.flags.c_contiguous


def test_the_second_label_of_cifar_100_is_the_fine_one(tmp_path, cifar):
    images, coarse, fine = cifar
    (tmp_path / "train.bin").write_bytes(cifar_records(images, coarse, fine))
    x, y = read_cifar_folder(tmp_path, ["train.bin"], 2)
    np.testing.assert_array_equal(x, images)
    assert y.tolist() == fine


def test_cifar_files_of_a_wrong_length_are_named(tmp_path, cifar):
    for content in (cifar_records(cifar[0], cifar[1])[:-1], b""):
        (tmp_path / "train.bin").write_bytes(content)
        message = refused(read_cifar_folder, tmp_path, ["train.bin"], 1)
        assert "train.bin" in message and "3073-byte records" in message
    assert "No such file" in refused(read_cifar_folder, tmp_path, ["test.bin"], 1)


def write_tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_cifar_archives_are_read_in_place(tmp_path, cifar):
    images, labels, _ = cifar
    members = {
        "folder/readme.html": b"text",
        "folder/test.bin": cifar_records(images[2:], labels[2:]),
        "folder/two.bin": cifar_records(images[1:2], labels[1:2]),
        "folder/one.bin": cifar_records(images[:1], labels[:1]),
    }
    path = tmp_path / "set.tar.gz"
    write_tar(path, members)
    parts = read_cifar_archive(path, {"train": ["one.bin", "two.bin"], "test": ["test.bin"]}, 1)
    np.testing.assert_array_equal(parts["train"][0], images[:2])
    np.testing.assert_array_equal(parts["test"][0], images[2:])
    assert parts["train"][1].tolist() == labels[:2]
    assert [p.name for p in tmp_path.iterdir()] == ["set.tar.gz"]


def test_wrong_cifar_archives_are_named(tmp_path, cifar):
    path, parts = tmp_path / "set.tar.gz", {"train": ["one.bin"], "test": ["two.bin"]}
    write_tar(path, {"one.bin": cifar_records(cifar[0], cifar[1])})
    assert "lacks two.bin" in refused(read_cifar_archive, path, parts, 1)
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged or truncated" in refused(read_cifar_archive, path, parts, 1)
    path.write_bytes(b"nothing of the kind")
    assert "damaged or truncated" in refused(read_cifar_archive, path, parts, 1)
    write_tar(path, {"one.bin": b"12", "two.bin": b"34"})
    assert "one.bin: 2 bytes" in refused(read_cifar_archive, path, parts, 1)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("map_above_bytes", [0, 1 << 30])
def test_npz_files_give_the_named_arrays(tmp_path, save, map_above_bytes):
    arrays = {
        "a": IMAGES,
        "b": np.arange(3),
        "f": np.asfortranarray(RNG.standard_normal((4, 5))),
        "z": np.ones(2),
    }
    save(tmp_path / "set.npz", **arrays)
    read = read_npz(tmp_path / "set.npz", ["a", "f"], ["b", "nothing"], map_above_bytes=map_above_bytes)
    assert list(read) == ["a", "f", "b"]
    for name, array in read.items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype
        assert isinstance(array, np.memmap) == (save is np.savez and map_above_bytes == 0)


def test_mapped_arrays_are_read_only(tmp_path):
    np.savez(tmp_path / "set.npz", a=IMAGES)
    mapped = read_npz(tmp_path / "set.npz", ["a"], map_above_bytes=0)["a"]
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0


def test_malformed_npz_files_are_named_with_the_reason(tmp_path):
    path = tmp_path / "set.npz"
    assert "truncated" in refused(read_npz, path, ["a"])
    np.savez(path, a=IMAGES, other=IMAGES)
    assert f"{path}: lacks b, c; it holds a, other" in refused(read_npz, path, ["a", "b", "c"])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "truncated" in refused(read_npz, path, ["a"])
    damaged = bytearray(whole)
    damaged[whole.index(IMAGES.tobytes()) + 3] ^= 1
    path.write_bytes(damaged)
    assert "CRC" in refused(read_npz, path, ["a"])
    np.save(tmp_path / "one.npy", IMAGES)
    assert "not an npz file" in refused(read_npz, tmp_path / "one.npy", ["a"])


@pytest.mark.parametrize("map_above_bytes", [0, 1 << 30])
def test_pickled_objects_are_never_loaded(tmp_path, map_above_bytes):
    np.savez(tmp_path / "set.npz", a=np.array([{"python": "object"}], dtype=object))
    message = refused(read_npz, tmp_path / "set.npz", ["a"], map_above_bytes=map_above_bytes)
    assert "pickle" in message


def test_the_idx_header_above_is_what_struct_makes_of_it():
    assert IDX[:16] == struct.pack(">I3I", 0x00000803, 5, 4, 3)


SAMPLES = np.array([0, 1, -1, 32767, -32768, 258], np.int16)


def wav(samples=SAMPLES, *, kind=1, channels=1, rate=16_000, bits=16, extra=b"", promised=None):
    """A RIFF file by hand: a format chunk, perhaps others, and the data."""
    data = samples.tobytes()
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    body = b"WAVEfmt " + struct.pack("<I", len(head)) + head + extra
    body += b"data" + struct.pack("<I", len(data) if promised is None else promised) + data
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_wav_files_give_their_samples(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", None))
        file.writeframes(SAMPLES.tobytes())
    assert path.read_bytes() == wav()
    for content in (wav(), wav(extra=b"LIST" + struct.pack("<I", 4) + b"INFO")):
        path.write_bytes(content)
        samples = read_wav(path)
        assert samples.dtype == np.int16
        np.testing.assert_array_equal(samples, SAMPLES)
    path.write_bytes(wav(rate=8000))
    np.testing.assert_array_equal(read_wav(path, 8000), SAMPLES)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a PCM wav file, or truncated"),
        (b"ID3" + wav(), "not a PCM wav file, or truncated .file does not start with RIFF id"),
        (wav().replace(b"WAVE", b"AVI "), "not a WAVE file"),
        (wav()[:30], "not a PCM wav file, or truncated"),
        (wav()[:36], "not a PCM wav file, or truncated"),
        (wav()[:-1], "truncated: its header promises 6 samples, found 5"),
        (wav(promised=2**31), "truncated: its header promises 1073741824 samples, found 6"),
        (wav(SAMPLES[:0]), "empty: its header promises 0 samples, found 0"),
        (wav(rate=44_100), "sampled at 44100 Hz, but 16000 Hz is needed"),
        (wav(channels=2), "2 channels of 16 bits; only mono"),
        (wav(bits=8), "1 channels of 8 bits"),
        (wav(bits=24), "1 channels of 24 bits"),
        (wav(channels=0), "not a PCM wav file"),
        (wav(bits=0), "not a PCM wav file"),
        (wav(kind=3, bits=32), "unknown format: 3"),  # floating
        (wav(kind=6, bits=8), "unknown format: 6"),  # A-law, compressed
        (wav(kind=0x11, bits=4), "unknown format: 17"),  # ADPCM, compressed
    ],
)
def test_malformed_wav_files_are_named_with_the_reason(tmp_path, content, says):
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    message = refused(read_wav, path)
    assert message.startswith(f"{path}: ")
    with pytest.raises(UserError, match=says):
        read_wav(path)
    path.unlink()
    assert "No such file" in refused(read_wav, path)


def test_a_wav_file_cut_or_changed_anywhere_is_read_or_refused_but_never_crashes(tmp_path):
    path, whole, accepted = tmp_path / "a.wav", wav(), 0
    changed = [whole[:place] + bytes([value]) + whole[place + 1 :] for place in range(44) for value in (0, 1, 127, 255)]
    for content in [whole[:length] for length in range(len(whole))] + changed:
        path.write_bytes(content)
        try:
            accepted += len(read_wav(path)) > 0
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    assert 0 < accepted < len(changed)  # bytes that do not matter, such as the bytes per second
