"""Gets published data sets into a data directory, over https alone and with known checksums.

    python -m fedjax8.fetch NAME... --data_dir=DIR [--base_url=URL] [--list]

Files land in DIR/NAME/ as published, where `--data_dir=DIR` or `$FEDJAX8_DATA` finds them. A download goes to
FILE.part, is resumed where it stopped, also by the next run, and becomes FILE once its checksum is right: pooch
compares and renames. Archives of `speech_commands` and of TensorFlow Federated's sets are unpacked as well, and may
then be deleted.
Needs pooch: pip install 'fedjax8[fetch]'.

Addresses and checksums are those of the publishers or of their loaders (torchvision, torchaudio, TensorFlow Federated).
"""

import http.client
import logging
import os
import shutil
import ssl
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from fedjax8 import cli
from fedjax8.errors import UserError
from fedjax8.lookup import optional, suggest

_SCHEME = "https://"
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
_TFF = "https://storage.googleapis.com/tff-datasets-public/"


class Source(NamedTuple):
    """Where a data set is published, and the checksum of each of its files."""

    base_url: str
    files: dict[str, str]
    """File name -> MD5 (32 digits) or SHA-256 (64 digits) of its bytes."""
    unpack_into: str = ""
    """Folder that the files, all tar archives, are unpacked into; empty to leave them as they are."""
    size: str = "size not published"
    """Of the download."""


def _tff(name: str, checksum: str, size: str = "size not published") -> Source:
    return Source(_TFF, {f"{name}.tar.bz2": checksum}, "h5", size)


SOURCES = {
    "mnist": Source(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        size="12 MB",
    ),
    "fashion_mnist": Source(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        size="31 MB",
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        size="170 MB",
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "03b5dce01913d631647c71ecec9e9cb8"},
        size="169 MB",
    ),
    "speech_commands": Source(
        "https://storage.googleapis.com/download.tensorflow.org/data/",
        {"speech_commands_v0.02.tar.gz": "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"},
        "speech_commands_v0.02",
        "2.4 GB",
    ),
    "fed_emnist": _tff("fed_emnist", "fe1ed5a502cea3a952eb105920bff8cffb32836b5173cb18a57a32c3606f3ea0"),
    "fed_emnist_digitsonly": _tff(
        "fed_emnist_digitsonly", "55333deb8546765427c385710ca5e7301e16f4ed8b60c1dc5ae224b42bd5b14b"
    ),
    "fed_cifar100": _tff("fed_cifar100", "e8575e22c038ecef1ce6c7d492d7abee7da13b1e1ba9b70a7fc18531ba7590de"),
    "shakespeare": _tff("shakespeare", "0285be9906cb5f268092eee4edeeacfc2af4574f2941f7cc2f08a321d7f5c707"),
    "stackoverflow": _tff("stackoverflow", "99eca2f8b8327a09e5fc123979df2d237acbc5e52322f6d86bf523ee47b961a2"),
}
"""By name. Those of TensorFlow Federated are read by the source `tff_h5`, the others by the source of their name."""


class _TryAgain(Exception):
    """A problem that another try may mend."""


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_string("data_dir", None, "where to put NAME/FILE; default $FEDJAX8_DATA")
    flags.DEFINE_string("base_url", None, "get URL/FILE instead, from a mirror over https; one NAME at a time")
    flags.DEFINE_bool("list", False, "list names, sizes and addresses, and stop")


def main(argv: list[str]) -> int:
    """Gets the data sets `argv[1:]`; the exit status is 0. UserError where one cannot be had."""
    args = flags.FLAGS
    if args.list:
        for name, source in SOURCES.items():
            print(f"{name} ({source.size}): " + " ".join(source.base_url + file for file in source.files))
        return 0
    plan = _plan(argv[1:], args.data_dir, args.base_url)
    optional("pooch", "fetching data", "fetch").get_logger().setLevel(logging.WARNING)
    for name, source, folder in plan:
        try:
            for sentence in _get(source, folder):
                print(f"{name}: {sentence}", flush=True)
        except OSError as error:
            raise UserError(f"{name}: {folder} cannot be written ({error.strerror or error})") from error
    return 0


def _get(source: Source, folder: Path) -> Iterator[str]:
    """Fetches and unpacks one data set; gives sentences of what was done."""
    unpacked = folder / source.unpack_into
    if source.unpack_into and unpacked.is_dir():
        yield f"{unpacked} is already there"
        return
    for file, checksum in source.files.items():
        outcome = fetch(source.base_url + file, folder / file, checksum)
        yield f"{folder / file} {outcome}"
    if source.unpack_into:
        unpack([folder / file for file in source.files], unpacked)
        yield f"{unpacked} unpacked"


def fetch(url: str, path: Path, checksum: str) -> str:
    """Makes `path` hold the bytes with this checksum, from `url` where needed; returns what was done.

    The file appears by a rename once its checksum is verified; until then its bytes are in PATH.part.

    Raises:
        UserError: an address that is not https, a server that refuses, or `_TRIES` tries without the right bytes.
    """
    check_address(url)
    pooch = optional("pooch", "fetching data", "fetch")
    known = f"{'sha256' if len(checksum) == 64 else 'md5'}:{checksum}"
    if path.is_file() and pooch.file_hash(str(path), known.partition(":")[0]) == checksum:
        return "is already there"
    part, problem = path.with_name(path.name + ".part"), ""

    def download(url: str, target: str, _: Any) -> None:
        _download(url, part)
        os.replace(part, target)

    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
        try:
            pooch.retrieve(url, known, fname=path.name, path=path.parent, downloader=download)
        except _TryAgain as error:
            problem = str(error)
        except UserError:
            raise
        except ValueError:  # by pooch: the wrong bytes are gone, as nothing in them is worth resuming
            problem = f"its checksum is not {checksum} (the file is damaged, or the server sent something else)"
        else:
            return "fetched"
    raise UserError(f"{url}: {problem}; gave up after {_TRIES} tries, run it again to resume")


def check_address(url: str) -> None:
    """UserError unless an address is https: nothing else keeps others from changing what is sent."""
    if not url.startswith(_SCHEME):
        raise UserError(f"{url!r} is not an address over https; give one that begins with {_SCHEME}")


class _HttpsAlone(urllib.request.HTTPRedirectHandler):
    """Follows redirects that stay within https."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """The next request; UserError where it would leave https."""
        check_address(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(url: str, part: Path) -> None:
    """Appends the rest of `url` to `part`; `_TryAgain` where it isn't complete."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.build_opener(_HttpsAlone).open(request, timeout=_TIMEOUT_SECONDS) as response:
            resumed = response.status == 206
            if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
                part.unlink()
                raise _TryAgain("the server sent another range than the one asked for")
            start = have if resumed else 0
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            with open(part, "ab" if resumed else "wb") as file:
                done = _copy(response, file, start, total, part.name.removesuffix(".part"))
        if total is not None and done != total:
            raise _TryAgain(f"the connection ended after {done} of {total} bytes")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing after our bytes: complete, or another file than the server's
            return
        if error.code in _WORTH_A_RETRY:
            raise _TryAgain(f"the server answered {error.code} {error.reason}") from error
        raise UserError(f"{url}: the server answered {error.code} {error.reason}; try --base_url=MIRROR") from error
    except _CONNECTION_ERRORS as error:
        reason = getattr(error, "reason", "") or error or type(error).__name__
        raise _TryAgain(f"the connection failed ({reason})") from error


def _copy(response: Any, file: Any, done: int, total: int | None, name: str) -> int:
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
        raise UserError(f"Python {sys.version.split()[0]} cannot unpack {archives[0]} safely; use 3.11.4 or newer")
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was interrupted
    try:
        for path in archives:
            with tarfile.open(path, "r:*") as archive:
                archive.extractall(part, filter="data")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise UserError(f"{path} cannot be unpacked ({' '.join(str(error).split())})") from error
    os.replace(part, folder)


def _plan(names: list[str], data_dir: str | None, base_url: str | None) -> list[tuple[str, Source, Path]]:
    """Name, source and folder of each data set asked for, once."""
    for name in names:
        if name not in SOURCES:
            raise UserError(f"no data set {name!r}: allowed are {', '.join(SOURCES)}{suggest(name, SOURCES)}")
    if not names:
        raise UserError(f"no data set named: give one or more of {', '.join(SOURCES)}, or --list")
    data_dir = data_dir or os.environ.get("FEDJAX8_DATA")
    if not data_dir:
        raise UserError("no data directory: give --data_dir=DIR or set $FEDJAX8_DATA")
    names = list(dict.fromkeys(names))
    sources = [SOURCES[name] for name in names]
    if base_url:
        check_address(base_url)
        if len(names) > 1:
            raise UserError("--base_url serves one data set at a time (sets share file names); name just one")
        sources = [sources[0]._replace(base_url=base_url.rstrip("/") + "/")]
    return [(n, s, cli.path_of(data_dir) / n) for n, s in zip(names, sources, strict=True)]


if __name__ == "__main__":
    define_flags()
    cli.run(main)
