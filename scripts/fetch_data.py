#!/usr/bin/env python3
"""Gets the official files of MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100 and Speech Commands into a data directory.

    python scripts/fetch_data.py mnist cifar10 --data_dir DIR

Files land in DIR/NAME/ as published, where `--data_dir=DIR` or `$FEDJAX8_DATA` finds them. A download goes to
FILE.part, is resumed where it stopped, and becomes FILE only once its checksum is right. Speech Commands (2.4 GB)
is unpacked as well, as it is read from its folder; the archive may be deleted afterwards. Needs nothing but
Python.

Exit status: 0 when all files are there, 2 on an error (one line on stderr), 130 when interrupted.
"""

import argparse
import difflib
import hashlib
import http.client
import os
import shutil
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from typing import NamedTuple, NoReturn

_CHUNK_BYTES = 1 << 18
_TIMEOUT_SECONDS = 30.0
_TRIES = 5
_FIRST_WAIT_SECONDS = 1.0  # doubled after each failed try
_CONNECTION_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_WORTH_A_RETRY = (408, 425, 429, 500, 502, 503, 504)


class FetchError(Exception):
    """Something that more tries will not mend; its text is one line for the user."""


class Source(NamedTuple):
    """Where a data set is published, and the checksum of each of its files."""

    base_url: str
    files: dict[str, str]  # file name -> MD5 (32 digits) or SHA-256 (64 digits) of its bytes
    unpack_into: str = ""  # folder that the files, all tar archives, are unpacked into; "" to leave them as they are


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion_mnist": Source(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/", {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/", {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"}
    ),
    "speech_commands": Source(
        "http://download.tensorflow.org/data/",
        {"speech_commands_v0.02.tar.gz": "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"},
        unpack_into="speech_commands_v0.02",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    try:
        given = _parse(argv)
        if given.list:
            for name, source in SOURCES.items():
                print(f"{name}: " + " ".join(source.base_url + file for file in source.files))
            return 0
        for name, source, folder in _plan(given):
            unpacked = folder / source.unpack_into
            if source.unpack_into and unpacked.is_dir():
                print(f"{name}: {unpacked} is already there")
                continue
            for file, checksum in source.files.items():
                outcome = fetch(source.base_url + file, folder / file, checksum)
                print(f"{name}: {folder / file} {outcome}")
            if source.unpack_into:
                unpack([folder / file for file in source.files], unpacked)
                print(f"{name}: {unpacked} unpacked")
        return 0
    except (FetchError, OSError) as error:
        print(f"fetch_data: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fetch_data: interrupted; run it again to resume", file=sys.stderr)
        return 130


def fetch(url: str, path: Path, checksum: str) -> str:
    """Makes `path` hold the bytes with this checksum, from `url` where needed; returns what was done.

    The file appears by an atomic rename once its checksum is verified; until then its bytes are in PATH.part.
    """
    if path.exists() and _has_checksum(path, checksum):
        return "is already there"
    path.parent.mkdir(parents=True, exist_ok=True)
    part, problem = path.with_name(path.name + ".part"), ""
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        problem = _download(url, part)
        if problem:
            continue
        if _has_checksum(part, checksum):
            os.replace(part, path)
            return "fetched"
        part.unlink()  # wrong bytes: nothing in it is worth resuming
        problem = f"its checksum is not {checksum} (the file is damaged, or the server sent something else)"
    raise FetchError(f"{url}: {problem}; gave up after {_TRIES} tries, run it again to resume")


def _download(url: str, part: Path) -> str:
    """Appends the rest of `url` to `part`; returns '' when complete, else a problem worth another try."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as response:
            resumed = response.status == 206
            if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
                part.unlink()
                return "the server sent another range than the one asked for"
            start = have if resumed else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            with open(part, "ab" if resumed else "wb") as file:
                done = _copy(response, file, start, total, part.name.removesuffix(".part"))
        return "" if total is None or done == total else f"the connection ended after {done} of {total} bytes"
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after our bytes: complete, or another file than the server's
            return ""
        if error.code in _WORTH_A_RETRY:
            return f"the server answered {error.code} {error.reason}"
        problem = f"the server answered {error.code} {error.reason}; try --base_url=MIRROR"
        raise FetchError(f"{url}: {problem}") from error
    except _CONNECTION_ERRORS as error:
        return f"the connection failed ({getattr(error, 'reason', '') or error or type(error).__name__})"


def _copy(response, file, done: int, total: int | None, name: str) -> int:
    """Copies the response to the file and shows progress on a terminal; returns how far the file reaches."""
    show = sys.stderr.isatty()
    try:
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            done += len(chunk)
            if show:
                share = f"{100 * done // total:3d}% of {total / 1e6:.1f} MB" if total else f"{done / 1e6:.1f} MB"
                print(f"\r{name}: {share}", end="", file=sys.stderr, flush=True)
    except http.client.IncompleteRead as error:
        file.write(error.partial)  # worth keeping: the next try goes on from here
        raise
    finally:
        if show:
            print(file=sys.stderr)
    return done


def unpack(archives: list[Path], folder: Path) -> None:
    """Unpacks tar archives into `folder`, which appears by a rename once everything is in it.

    Members that would land outside of it, links out of it and devices are refused (tarfile's `data` filter).
    """
    if not hasattr(tarfile, "data_filter"):
        raise FetchError(f"Python {sys.version.split()[0]} cannot unpack {archives[0]} safely; use 3.11.4 or newer")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was interrupted
    try:
        for path in archives:
            with tarfile.open(path, "r:*") as archive:
                archive.extractall(part, filter="data")
    except (tarfile.TarError, EOFError, zlib.error) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise FetchError(f"{path} cannot be unpacked ({' '.join(str(error).split())})") from error
    os.replace(part, folder)


def _has_checksum(path: Path, checksum: str) -> bool:
    kind = "sha256" if len(checksum) == 64 else "md5"
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest() == checksum


def _plan(given: argparse.Namespace) -> list[tuple[str, Source, Path]]:
    for name in given.names:
        if name not in SOURCES:
            near = difflib.get_close_matches(name, SOURCES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise FetchError(f"no data set {name!r}: allowed are {', '.join(SOURCES)}{hint}")
    if not given.names:
        raise FetchError(f"no data set named: give one or more of {', '.join(SOURCES)}, or --list")
    data_dir = given.data_dir or os.environ.get("FEDJAX8_DATA")
    if not data_dir:
        raise FetchError("no data directory: give --data_dir=DIR or set $FEDJAX8_DATA")
    names = list(dict.fromkeys(given.names))
    sources = [SOURCES[name] for name in names]
    if given.base_url:
        if not given.base_url.startswith(("http://", "https://")):
            raise FetchError(f"--base_url is {given.base_url!r}; it must start with http:// or https://")
        if len(names) > 1:
            raise FetchError("--base_url serves one data set at a time (sets share file names); name just one")
        sources = [sources[0]._replace(base_url=given.base_url.rstrip("/") + "/")]
    return [(n, s, Path(data_dir).expanduser() / n) for n, s in zip(names, sources, strict=True)]


class _OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise FetchError(f"{message}; see --help")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _OneLineParser(prog="fetch_data.py", description=__doc__.split("\n\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SOURCES))
    parser.add_argument("--data_dir", metavar="DIR", help="where to put NAME/FILE; default $FEDJAX8_DATA")
    parser.add_argument("--base_url", metavar="URL", help="get URL/FILE instead, from a mirror; one NAME at a time")
    parser.add_argument("--list", action="store_true", help="list names and addresses, and stop")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
