"""Which files of an image folder are decoded, and to which bytes: two formats, two depths, and nothing that is run."""

import logging
import struct
import zlib

import numpy as np
import pytest

from fedjax8.data.sources.image_folder import MOST_PIXELS, image_folder
from fedjax8.errors import UserError

pillow = pytest.importorskip("PIL.Image")


def png(width, height, depth, color, rows):
    """A PNG by hand: header, one compressed chunk of rows, each after a filter byte of 0."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def folder_of(root, files):
    """A set with `train` and `test` of one class that hold these files."""
    for part in ("train", "test"):
        (root / "set" / part / "a").mkdir(parents=True)
        for name, content in files.items():
            (root / "set" / part / "a" / name).write_bytes(content)
    return str(root)


# Values of 16 bits: color type 0 is gray, 2 RGB, 4 gray with alpha.
@pytest.mark.parametrize(("color", "channels"), [(0, 1), (2, 3), (4, 2)])
def test_images_of_16_bits_are_scaled_to_8(tmp_path, color, channels):
    levels = np.array([[0, 1, 256, 10_000], [30_000, 32_768, 65_000, 65_535]], np.uint16)
    values = np.repeat(levels[..., None], channels, axis=2)
    content = png(4, 2, 16, color, [row.astype(">u2").tobytes() for row in values])
    # Squares, so that nothing is interpolated: each value fills one image.
    files = {
        f"{i}.png": png(1, 1, 16, color, [value.astype(">u2").tobytes()])
        for i, value in enumerate(values.reshape(8, channels))
    }
    x = image_folder(folder_of(tmp_path, files), "set", size=1).train["x"]
    np.testing.assert_allclose(x[:, 0, 0], np.repeat(levels.reshape(8, 1) / 257, 3, axis=1), atol=1)
    assert (x[-1] == 255).all() and (x[0] == 0).all()
    (tmp_path / "set" / "train" / "a" / "0.png").write_bytes(content)
    image = image_folder(str(tmp_path), "set", size=1).train["x"][0, 0, 0]
    assert abs(float(image[0]) - levels.mean() / 257) < 60  # 65,535 clipped to 255 would make all of it nearly white


def test_other_formats_under_the_name_of_an_image_are_refused_and_nothing_is_run(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\ntouch {ran}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    post_script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print showpage\n%%EOF\n"
    floats = tmp_path / "floats.tiff"
    pillow.fromarray(np.full((2, 2), 0.5, np.float32)).save(floats)
    gif = tmp_path / "a.gif"
    pillow.new("L", (2, 2), 3).save(gif)
    for content in (post_script, floats.read_bytes(), gif.read_bytes()):
        directory = tmp_path / str(len(list(tmp_path.iterdir())))
        with pytest.raises(UserError, match=r"0\.png: not a readable image of PNG or JPEG"):
            image_folder(folder_of(directory, {"0.png": content}), "set", size=2)
    assert not ran.exists()


@pytest.mark.parametrize(("width", "height"), [(2**31 - 1, 2**31 - 1), (MOST_PIXELS // 4 + 1, 4), (30_000, 30_000)])
def test_an_image_that_promises_too_many_pixels_is_refused_before_they_are_unpacked(tmp_path, width, height):
    content = png(width, height, 8, 0, [b"\0" * 16])
    with pytest.raises(UserError, match=r"0\.png: not a readable image"):
        image_folder(folder_of(tmp_path, {"0.png": content}), "set", size=2)


def test_what_is_passed_over_is_counted(tmp_path, caplog):
    gray = png(1, 1, 8, 0, [b"\x07"])
    folder_of(tmp_path, {"0.png": gray, "1.JPG.txt": b"", "2.webp": b""})
    with caplog.at_level(logging.WARNING):
        image_folder(str(tmp_path), "set", size=1)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2 and all("2 skipped, such as a/1.JPG.txt" in line for line in said)
    (tmp_path / "set" / "val").mkdir()
    caplog.clear()
    image_folder(str(tmp_path), "set", size=1)
    assert any("1 skipped, such as val" in record.getMessage() for record in caplog.records)


def test_more_images_than_fit_into_memory_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"1 images of size 100000000 take 30000000\.0 GB"):
        image_folder(folder_of(tmp_path, {"0.png": png(1, 1, 8, 0, [b"\x07"])}), "set", size=10**8)
