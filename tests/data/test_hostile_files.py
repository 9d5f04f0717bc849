"""Damaged and hostile files: each is read as what it holds or refused in one line, and nothing else happens.

No traceback, no memory beyond what the file itself could fill, no file written, and where a format has checksums no
other values than those that were written.
"""

import gzip
import io
import json
import struct
import tarfile
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest

from fedjax8.data.federated import federate
from fedjax8.data.partitions.by_key import by_key
from fedjax8.data.sources.image_folder import image_folder
from fedjax8.data.sources.mapped import mapped
from fedjax8.data.sources.npz import npz
from fedjax8.data.storage import save_clients
from fedjax8.errors import UserError
from fedjax8.models.pretrained import load_params
from fedjax8.readers.arrays import read_cifar_archive, read_cifar_folder, read_idx, read_npz, read_wav

RNG = np.random.default_rng(3)
MOST_BYTES = 1 << 24
"""Memory that may be taken while a file of a few kB is read."""
X, Y = RNG.integers(0, 256, (6, 4, 3)).astype(np.uint8), (np.arange(6) % 3).astype(np.int32)


def make_npz(folder, save=np.savez):
    save(folder / "set.npz", x_train=X, y_train=Y, x_test=X[:3], y_test=Y[:3])
    return [folder / "set.npz"]


def make_gzip(folder):
    path = folder / "images.gz"
    path.write_bytes(gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, *X.shape) + X.tobytes()))
    return [path]


def make_idx(folder):
    path = folder / "images"
    path.write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, *X.shape) + X.tobytes())
    return [path]


RECORDS = RNG.integers(0, 10, 2 * 3073).astype(np.uint8).tobytes()


def make_cifar(folder):
    (folder / "a.bin").write_bytes(RECORDS)
    return [folder / "a.bin"]


def make_tar(folder, mode="w:gz"):
    with tarfile.open(folder / "set.tar", mode) as archive:
        info = tarfile.TarInfo("batches/a.bin")
        info.size = len(RECORDS)
        archive.addfile(info, io.BytesIO(RECORDS))
    return [folder / "set.tar"]


def read_tar(folder):
    return read_cifar_archive(folder / "set.tar", {"t": ["a.bin"]}, 1)["t"]


def make_wav(folder):
    samples = RNG.integers(-100, 100, 50).astype("<i2").tobytes()
    head = struct.pack("<HHIIHH", 1, 1, 16_000, 32_000, 2, 16)
    body = b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + struct.pack("<I", len(samples)) + samples
    (folder / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    return [folder / "a.wav"]


def make_images(folder):
    pillow = pytest.importorskip("PIL.Image")
    paths = []
    for part in ("train", "test"):
        (folder / "set" / part / "a").mkdir(parents=True)
        for name in ("0.png", "1.jpg"):
            pillow.fromarray(RNG.integers(0, 256, (9, 8, 3)).astype(np.uint8)).save(folder / "set" / part / "a" / name)
            paths.append(folder / "set" / part / "a" / name)
    return paths


def make_safetensors(folder):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({"a/kernel": RNG.standard_normal((3, 2)).astype(np.float32), "b": np.ones(4, np.float32)}, folder / "p")
    return [folder / "p"]


def make_mapped(folder):
    for part in ("train", "test"):
        columns = {"x": RNG.standard_normal((6, 4)).astype(np.float32), "y": Y}
        save_clients(
            [{n: c[:2] for n, c in columns.items()}, {n: c[2:] for n, c in columns.items()}], folder / "m" / part
        )
    mapped(str(folder), "m")
    return sorted(path for path in folder.rglob("*") if path.is_file())


def read_mapped(folder):
    dataset = mapped(str(folder), "m")
    rows, _ = federate(dataset, by_key(), dataset.num_natural_clients).gather(np.arange(dataset.num_natural_clients))
    assert all(np.isfinite([*dataset.mean, *dataset.std])) and min(dataset.std) > 0
    return [np.array(dataset.mean), np.array(dataset.std), rows["x"], rows["y"]]


def read_set(dataset):
    assert dataset.validate() is dataset
    return [dataset.train["x"], dataset.train["y"], dataset.test["x"], dataset.test["y"]]


CHECKSUMS = "values are those written, or the file is refused"
KINDS = {
    "npz": (make_npz, lambda f: read_set(npz(str(f), "set")), CHECKSUMS),
    "npz, compressed": (
        lambda f: make_npz(f, np.savez_compressed),
        lambda f: read_set(npz(str(f), "set")),
        CHECKSUMS,
    ),
    "npz, mapped": (make_npz, lambda f: list(read_npz(f / "set.npz", ["x_train"], map_above_bytes=0).values()), ""),
    "idx": (make_idx, lambda f: [read_idx(f / "images", 3)], ""),
    "idx.gz": (make_gzip, lambda f: [read_idx(f / "images.gz", 3)], CHECKSUMS),
    "cifar": (make_cifar, lambda f: read_cifar_folder(f, ["a.bin"], 1), ""),
    "tar.gz": (make_tar, read_tar, CHECKSUMS),
    "tar": (lambda f: make_tar(f, "w"), read_tar, ""),
    "tar.xz": (
        lambda f: make_tar(f, "w:xz"),
        read_tar,
        "",
    ),
    "wav": (make_wav, lambda f: [read_wav(f / "a.wav")], ""),
    "images": (make_images, lambda f: read_set(image_folder(str(f), "set", size=4)), ""),
    "safetensors": (make_safetensors, lambda f: jax.tree.leaves(load_params(f / "p")), ""),
    "mapped": (make_mapped, read_mapped, ""),
}


def damaged(rng, content):
    """The bytes with one kind of damage."""
    data = bytearray(content)
    kind, place = int(rng.integers(6)), int(rng.integers(max(len(data), 1)))
    # Half of the damage where headers are: at the beginning, or, of zip directories, at the end.
    place = place % min(160, max(len(data), 1)) if rng.random() < 0.4 else place
    if not data:
        return b"\0"
    if kind == 0:
        data[place] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        data[place : place + int(rng.integers(1, 64))] = bytes(int(rng.integers(1, 64)))
    elif kind == 3:  # a huge size
        data[place : place + 8] = b"\xff" * int(rng.integers(1, 9))
    elif kind == 4:
        data[place:place] = rng.integers(0, 256, int(rng.integers(1, 40))).astype(np.uint8).tobytes()
    else:
        data[place : place + 4] = struct.pack("<I", int(rng.integers(1 << 31)))
    return bytes(data)


def read_or_refuse(read, folder):
    """What is read, or None where the file is refused in one line; within bounded memory, and without a new file."""
    before = {path for path in folder.rglob("*") if path.name != "measured.json"}
    tracemalloc.start()
    try:
        return [np.asarray(array).copy() for array in read(folder)]
    except UserError as error:
        assert "\n" not in str(error) and str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES
        assert {path for path in folder.rglob("*") if path.name != "measured.json"} == before


def fuzz(kind, tmp_path, cases):
    make, read, promise = KINDS[kind]
    paths = make(tmp_path)
    whole = {path: path.read_bytes() for path in paths}
    original = read_or_refuse(read, tmp_path)
    assert original is not None
    rng, refused = np.random.default_rng(list(kind.encode())), 0
    for _ in range(cases):
        path = paths[int(rng.integers(len(paths)))]
        path.write_bytes(damaged(rng, whole[path]))
        made = read_or_refuse(read, tmp_path)
        refused += made is None
        if made is not None and promise == CHECKSUMS:
            for array, wanted in zip(made, original, strict=True):
                np.testing.assert_array_equal(array, wanted)
        for path, content in whole.items():
            path.write_bytes(content)
    assert refused > 0  # damage is found
    assert all(np.array_equal(a, b) for a, b in zip(read_or_refuse(read, tmp_path), original, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_read_or_refused_and_nothing_else_happens(kind, tmp_path):
    fuzz(kind, tmp_path, 30)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_damaged_files_are_read_or_refused_and_nothing_else_happens(kind, tmp_path):
    fuzz(kind, tmp_path, 1500)


# By hand


def npy(descr, shape, body=b"", order=False):
    """An npy file, whatever its header says."""
    text = repr({"descr": descr, "fortran_order": order, "shape": shape}).encode()
    text += b" " * (64 - (10 + len(text) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


HEADERS = {
    "huge": npy("<f4", (1 << 40,)),
    "overflowing": npy("<f4", (1 << 32, 1 << 32, 2), b"\0" * 8),
    "negative": npy("<f4", (-1,), b"\0" * 4),
    "objects": npy("|O", (1,), b"\x80\x04N."),
    "text": npy("<U1", (1,), b"\0" * 4),
    "nested": npy("<f4", (1,)).replace(b"(1,)", b"(" * 200 + b")" * 200),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
    "too long": npy("<f4", (1,), b"\0" * 400),
}


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_arrays_that_promise_what_they_do_not_hold_are_refused(header, compression, tmp_path):
    whole = {"x_train": X, "y_train": Y, "x_test": X[:3], "y_test": Y[:3]}
    with zipfile.ZipFile(tmp_path / "set.npz", "w", compression) as archive:
        for name, array in whole.items():
            file = io.BytesIO()
            np.save(file, array)
            archive.writestr(f"{name}.npy", HEADERS[header] if name == "x_train" else file.getvalue())
    for most in (1 << 30, 0):
        read = lambda folder, most=most: list(read_npz(folder / "set.npz", ["x_train"], map_above_bytes=most).values())
        made = read_or_refuse(read, tmp_path)
        assert made is None or header == "text"
    assert read_or_refuse(KINDS["npz"][1], tmp_path) is None


def test_what_unpacks_to_too_much_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("fedjax8.readers.arrays.MOST_UNPACKED_BYTES", 1 << 20)
    zeros = np.zeros((1 << 21,), np.uint8)
    np.savez_compressed(tmp_path / "set.npz", x_train=zeros)
    with pytest.raises(UserError, match=r"x_train\.npy unpacks to 2097280 bytes, of 1048576 at most; write it with"):
        read_npz(tmp_path / "set.npz", ["x_train"])
    np.savez(tmp_path / "set.npz", x_train=zeros)  # stored as it is: no limit
    assert read_npz(tmp_path / "set.npz", ["x_train"])["x_train"].nbytes == 1 << 21
    with tarfile.open(tmp_path / "set.tar", "w:gz") as archive:
        info = tarfile.TarInfo("big")
        info.size = 1 << 21
        archive.addfile(info, io.BytesIO(zeros.tobytes()))
    with pytest.raises(UserError, match=r"big of 2097152 bytes is too large for an archive of CIFAR"):
        read_cifar_archive(tmp_path / "set.tar", {"t": ["a.bin"]}, 1)
    packed = gzip.compress(struct.pack(">4B3I", 0, 0, 8, 3, 1 << 30, 1 << 30, 4))
    (tmp_path / "images.gz").write_bytes(packed)
    assert read_or_refuse(lambda f: [read_idx(f / "images.gz", 3)], tmp_path) is None


def test_names_that_lead_out_of_an_archive_or_a_folder_write_and_read_nothing(tmp_path):
    inside = tmp_path / "inside"
    inside.mkdir()
    with tarfile.open(inside / "set.tar", "w") as archive:
        for name in ("../a.bin", "/tmp/../a.bin"):
            info = tarfile.TarInfo(name)
            info.size = len(RECORDS)
            archive.addfile(info, io.BytesIO(RECORDS))
        link = tarfile.TarInfo("b.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    x, _ = read_cifar_archive(inside / "set.tar", {"t": ["a.bin"]}, 1)["t"]
    assert x.shape == (2, 32, 32, 3) and sorted(p.name for p in tmp_path.rglob("*")) == ["inside", "set.tar"]
    with pytest.raises(UserError, match=r"lacks b\.bin"):
        read_cifar_archive(inside / "set.tar", {"t": ["b.bin"]}, 1)
    make_mapped(inside)
    header = inside / "m" / "train" / "federated.json"
    document = json.loads(header.read_text())
    document["columns"]["../../../secret"] = ["<f4", []]
    header.write_text(json.dumps(document))
    np.save(tmp_path / "secret.npy", np.zeros(6, np.float32))
    with pytest.raises(UserError, match=r"federated\.json is damaged \(column .* cannot be the name of a file"):
        mapped(str(inside), "m")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda h: h | {"num_rows": 10**30}, "numbers of rows and clients"),
        (lambda h: h | {"num_rows": -1}, "numbers of rows and clients"),
        (lambda h: h | {"num_clients": 0}, "numbers of rows and clients"),
        (lambda h: {k: v for k, v in h.items() if k != "num_rows"}, "'num_rows'"),
        (lambda h: h | {"columns": []}, "numbers of rows and clients, or its columns"),
        (lambda h: h | {"columns": {"x": ["|O", []]}}, "column 'x' is"),
        (lambda h: h | {"columns": {"x": ["no type", []]}}, "no type"),
        (lambda h: h | {"columns": {"x": ["<f4", [-4]]}}, "column 'x' is"),
        (lambda h: h | {"columns": {"x": 3}}, "damaged"),
        (lambda h: h | {"id": 3}, "no JSON object of ours"),
        (lambda h: [h], "no JSON object of ours"),
    ],
)
def test_headers_of_mapped_folders_are_checked(change, says, tmp_path):
    make_mapped(tmp_path)
    header = tmp_path / "m" / "train" / "federated.json"
    header.write_text(json.dumps(change(json.loads(header.read_text()))))
    with pytest.raises(UserError, match=says) as raised:
        mapped(str(tmp_path), "m")
    assert "write the folder again" in str(raised.value)
    header.write_text("[" * 100_000)
    with pytest.raises(UserError, match="write the folder again"):
        mapped(str(tmp_path), "m")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("starts", np.array([0, 5], np.int64)),
        ("starts", np.array([-1, 2], np.int64)),
        ("starts", np.array([0, np.iinfo(np.int64).max], np.int64)),  # start + size would overflow to a negative number
        ("sizes", np.array([2, np.iinfo(np.int32).max], np.int32)),
        ("sizes", np.array([2, -1], np.int32)),
    ],
)
def test_starts_and_sizes_outside_of_the_rows_are_found_when_a_folder_is_opened(name, values, tmp_path):
    make_mapped(tmp_path)
    np.save(tmp_path / "m" / "train" / f"{name}.npy", values)
    with pytest.raises(UserError, match=r"m/train: a client's window leaves the 6 rows; .*; write the folder again"):
        mapped(str(tmp_path), "m")


def test_what_was_measured_is_measured_anew_where_its_file_is_damaged(tmp_path):
    make_mapped(tmp_path)
    first, path = mapped(str(tmp_path), "m"), tmp_path / "m" / "measured.json"
    kept = json.loads(path.read_text())
    for change in ({"std": [0.0] * 4}, {"mean": [1e9] * 4}, {"num_classes": 9}, {"std": None}, {"checksum": "0"}):
        path.write_text(json.dumps(kept | change))
        assert mapped(str(tmp_path), "m")[2:6] == first[2:6]
        assert json.loads(path.read_text()) == kept


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    for value, dtype in ((np.nan, np.float32), (np.inf, np.float16)):
        kernel = np.ones((3, 2), dtype)
        kernel[1, 1] = value
        save_file({"a/kernel": kernel}, tmp_path / "p")
        with pytest.raises(UserError, match="'a/kernel' holds NaN or an infinity"):
            load_params(tmp_path / "p")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a//b", "c"), ("/".join("a" * 100), "c")])
def test_names_that_are_no_paths_of_parameters_are_refused(names, tmp_path):
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({name: np.ones(2, np.float32) for name in names}, tmp_path / "p")
    with pytest.raises(UserError, match=r"below|no path of a parameter"):
        load_params(tmp_path / "p")
