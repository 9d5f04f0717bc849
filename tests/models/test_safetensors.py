"""The safetensors format, against its own library and against headers made by hand."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from fedjax8.models._safetensors import NAMES, read_header, read_tensor, write_tensors

TENSORS = {
    "a/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "half": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "eight": np.array([[1.0], [0.5]], ml_dtypes.float8_e4m3fn),
    "scalar": np.float64(3.25),
    "empty": np.zeros((0, 4), np.int16),
    "flags": np.array([True, False]),
}


def header(entries, content=b"", length=None):
    text = json.dumps(entries).encode() if isinstance(entries, dict) else entries
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def test_a_file_comes_back_as_it_was_written_and_is_whole_or_absent(tmp_path):
    file = tmp_path / "x.safetensors"
    write_tensors(file, TENSORS, {"format": "mine"})
    read = read_header(file)
    assert read.metadata == {"format": "mine"} and set(read.tensors) == set(TENSORS)
    for name, array in TENSORS.items():
        found = read_tensor(file, read.tensors[name])
        assert found.dtype == array.dtype and found.shape == np.shape(array)
        assert found.tobytes() == np.asarray(array).tobytes()
    np.testing.assert_array_equal(read_tensor(file, read.tensors["a/kernel"], (slice(None), slice(1, 2))), [[1], [4]])
    with pytest.raises(KeyError):
        write_tensors(file, {"complex": np.zeros(1, np.complex64)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"] and read_header(file) == read


def test_the_library_reads_what_is_written_and_its_files_are_read(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    known = {name: array for name, array in TENSORS.items() if array.dtype in (np.float32, np.float64, np.int16, bool)}
    write_tensors(tmp_path / "ours", known, {})
    for name, array in library.load_file(tmp_path / "ours").items():
        assert array.dtype == known[name].dtype and array.tobytes() == np.asarray(known[name]).tobytes()
    library.save_file({name: np.asarray(array) for name, array in known.items()}, tmp_path / "theirs")
    read = read_header(tmp_path / "theirs")
    assert set(read.tensors) == set(known)
    for name, array in known.items():
        assert read_tensor(tmp_path / "theirs", read.tensors[name]).tobytes() == np.asarray(array).tobytes()


FINE = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
DAMAGED = {
    "empty": b"",
    "short": b"\2\0",
    "no header": header(b""),
    "longer than the file": header(b"{}", length=3),
    "huge": header(b"{}", length=2**63),
    "no JSON": header(b"{]"),
    "a list": header(b"[]"),
    "deep": header(b"[" * 10**5),
    "metadata": header({"__metadata__": {"a": 1}}),
    "dtype": header({"a": FINE | {"dtype": "F7"}}, b"ab"),
    "no entry": header({"a": 3}, b"ab"),
    "shape": header({"a": FINE | {"shape": [3]}}, b"ab"),
    "negative": header({"a": FINE | {"shape": [-1, -2]}}, b"ab"),
    "offsets": header({"a": FINE | {"data_offsets": [0, 2, 4]}}, b"ab"),
    "no offsets": header({"a": FINE | {"data_offsets": [0.0, None]}}, b"ab"),
    "a gap": header({"a": FINE | {"data_offsets": [1, 3]}}, b"abc"),
    "twice": header({"a": FINE, "b": FINE}, b"ab"),
    "too short": header({"a": FINE}, b"a"),
    "too long": header({"a": FINE}, b"abc"),
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_by_its_header(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ValueError, match=r"header|JSON|metadata|dtype|lie|bytes"):
        read_header(tmp_path / "x")


def test_every_dtype_has_one_name():
    assert len(NAMES) == 15
