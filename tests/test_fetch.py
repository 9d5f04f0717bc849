"""The downloader, against small servers on the loopback interface."""

import functools
import hashlib
import http.server
import io
import os
import tarfile
import threading
import types
import urllib.request

import numpy as np
import pytest
from absl import flags

from fedjax8 import cli, fetch
from fedjax8.errors import UserError

pytest.importorskip("pooch", reason="needs pooch: pip install 'fedjax8[fetch]'")
CONTENT = np.random.default_rng(0).bytes(700_000)  # several chunks, and incompressible
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `CONTENT` in the manner the server was told; keeps the requested ranges."""

    def log_message(self, *args):
        """Nothing on stderr."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        request_number, content, start = len(server.ranges), server.content, 0
        if request_number <= server.refusals:
            self.send_error(503)
            return
        if self.path != "/mirror/file.bin":
            self.send_error(404)
            return
        if wanted and server.supports_range:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if server.sends_length:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if request_number <= server.drops:
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True


@pytest.fixture
def serve(monkeypatch):
    """`serve(**manner) -> server` with `server.url`; each is shut down after the test."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    started = []

    def start(content=CONTENT, supports_range=True, drops=0, refusals=0, sends_length=True):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.content, server.supports_range, server.sends_length = content, supports_range, sends_length
        server.drops, server.refusals, server.ranges = drops, refusals, []
        server.url = f"http://127.0.0.1:{server.server_port}/mirror"
        thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def script(monkeypatch):
    """The command line, with one small data set `tiny`, no waiting between tries, and http allowed: the servers here
    speak nothing else."""
    own = flags.FlagValues()
    for name in ("data_dir", "base_url"):
        flags.DEFINE_string(name, None, "", flag_values=own)
    flags.DEFINE_bool("list", False, "", flag_values=own)
    monkeypatch.setattr(flags, "FLAGS", own)
    monkeypatch.setattr(fetch, "_SCHEME", "http://127.0.0.1")
    monkeypatch.setitem(fetch.SOURCES, "tiny", fetch.Source("http://127.0.0.1:9/", {"file.bin": MD5}))
    waits = []
    monkeypatch.setattr(fetch.time, "sleep", waits.append)
    monkeypatch.delenv("FEDJAX8_DATA", raising=False)

    def main(arguments):
        for name in own:
            own[name].unparse()
        try:
            return fetch.main(own(["fetch", *arguments]))
        except flags.Error as error:
            return cli.report(UserError(str(error)))
        except UserError as error:
            return cli.report(error)

    return types.SimpleNamespace(main=main, waits=waits, SOURCES=fetch.SOURCES, Source=fetch.Source)


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("supports_range", [True, False])
def test_a_file_is_fetched_whole(script, serve, tmp_path, supports_range):
    server = serve(supports_range=supports_range)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 0
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}
    assert server.ranges == [None]


def test_a_second_run_downloads_nothing(script, serve, tmp_path, capsys):
    server = serve()
    arguments = ["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]
    assert script.main(arguments) == 0 == script.main(arguments)
    assert len(server.ranges) == 1
    assert "is already there" in capsys.readouterr().out


def test_a_dropped_connection_is_resumed_where_it_broke(script, serve, tmp_path):
    server = serve(drops=2)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 0
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}
    # Half is sent, then half of the remaining half, then the rest.
    assert server.ranges == [None, "bytes=350000-", "bytes=525000-"]
    assert script.waits == [1.0, 2.0]


def test_without_range_support_a_dropped_download_starts_over(script, serve, tmp_path):
    server = serve(drops=1, supports_range=False)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 0
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}
    assert len(server.ranges) == 2  # nothing of the first half was left in the way


def test_without_a_content_length_the_checksum_decides(script, serve, tmp_path):
    server = serve(drops=1, sends_length=False)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 0
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}
    assert server.ranges == [None, None]  # the half file could not be told from a damaged one


def test_a_server_that_keeps_dropping_leaves_only_a_part_for_the_next_run(script, serve, tmp_path, capsys):
    server = serve(drops=5)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 2
    (name, part), *others = files_in(tmp_path).items()
    assert (name, others) == ("tiny/file.bin.part", [])
    assert 0 < len(part) < len(CONTENT) and CONTENT.startswith(part)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "gave up after 5 tries" in error and "run it again" in error
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 0
    assert server.ranges[-1] == f"bytes={len(part)}-"
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}


def test_corrupt_bytes_never_become_the_file(script, serve, tmp_path, capsys):
    corrupt = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    server = serve(content=corrupt)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 2
    assert files_in(tmp_path) == {}
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"checksum is not {MD5}" in error


def test_a_damaged_existing_file_stays_until_a_good_one_replaces_it(script, serve, tmp_path):
    path = tmp_path / "tiny" / "file.bin"
    path.parent.mkdir()
    path.write_bytes(b"damaged")
    down = serve(refusals=99)
    assert script.main(["tiny", "--data_dir", str(tmp_path), "--base_url", down.url]) == 2
    assert path.read_bytes() == b"damaged"
    assert script.main(["tiny", "--data_dir", str(tmp_path), "--base_url", serve().url]) == 0
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}


@pytest.mark.parametrize("leftover", [CONTENT, b"x" * 800_000, b"x" * 1000])
def test_any_leftover_part_ends_in_the_right_file(script, serve, tmp_path, leftover):
    # Complete but not renamed (the server answers 416), longer than the file (416), or of other bytes (206).
    part = tmp_path / "tiny" / "file.bin.part"
    part.parent.mkdir()
    part.write_bytes(leftover)
    assert script.main(["tiny", "--data_dir", str(tmp_path), "--base_url", serve().url]) == 0
    assert files_in(tmp_path) == {"tiny/file.bin": CONTENT}


def test_a_busy_server_is_tried_again(script, serve, tmp_path):
    server = serve(refusals=2)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 0
    assert len(server.ranges) == 3


def test_a_missing_file_is_one_line_without_retries(script, serve, tmp_path, capsys):
    server = serve()
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}" + "/elsewhere"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "404" in error and "--base_url" in error
    assert len(server.ranges) == 1 and files_in(tmp_path) == {}


def test_an_unreachable_server_is_one_line(script, tmp_path, capsys):
    assert script.main(["tiny", "--data_dir", str(tmp_path), "--base_url", "http://127.0.0.1:1"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "connection failed" in error
    assert files_in(tmp_path) == {}


def test_an_unusable_data_directory_is_one_line(script, serve, tmp_path, capsys):
    (tmp_path / "tiny").write_text("a file where the folder should go")
    assert script.main(["tiny", "--data_dir", str(tmp_path), "--base_url", serve().url]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "tiny" in error


def test_the_environment_names_the_data_directory(script, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDJAX8_DATA", str(tmp_path))
    assert script.main(["tiny", "--base_url", serve().url]) == 0
    assert set(files_in(tmp_path)) == {"tiny/file.bin"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["minst", "--data_dir=x"], "did you mean 'mnist'"),
        ([], "no data set named"),
        (["mnist"], "$FEDJAX8_DATA"),
        (["mnist", "cifar10", "--data_dir=x", "--base_url=http://127.0.0.1"], "one data set at a time"),
        (["mnist", "--data_dir=x", "--base_url=/tmp"], "not an address over https"),
        (["mnist", "--nonsense"], "flag 'nonsense'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_2(script, capsys, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert script.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and says in error
    assert os.listdir(tmp_path) == []


def test_the_list_names_every_file(script, capsys):
    assert script.main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert listed.count("\n") == len(script.SOURCES)
    for name in ("mnist", "fashion_mnist", "cifar10", "cifar100", "speech_commands"):
        assert all(file in listed for file in script.SOURCES[name].files)
    assert "cifar10 (170 MB)" in listed and "/stackoverflow.tar.bz2" in listed


def test_checksums_are_md5_or_sha256_and_addresses_end_in_a_slash(script):
    sums = [checksum for source in script.SOURCES.values() for checksum in source.files.values()]
    assert all(len(c) in (32, 64) and set(c) <= set("0123456789abcdef") for c in sums)
    assert len(set(sums)) == len(sums)
    assert all(source.base_url.endswith("/") for source in script.SOURCES.values())
    real = [source.base_url for name, source in script.SOURCES.items() if name != "tiny"]
    assert all(url.startswith("https://") for url in real)


@pytest.mark.parametrize("url", ["http://127.0.0.1/x", "file:///etc/passwd", "ftp://h/x", "/etc/passwd", "HTTP://h/x"])
def test_nothing_but_https_is_asked(tmp_path, url, monkeypatch):
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(UserError, match="not an address over https"):
        fetch.fetch(url, tmp_path / "file", MD5)
    assert not list(tmp_path.iterdir())


def test_a_redirect_out_of_https_is_not_followed(script, serve, tmp_path, capsys, monkeypatch):
    server = serve()
    elsewhere = "http://localhost:1/file.bin"

    def redirects(self):
        self.send_response(302)
        self.send_header("Location", elsewhere)
        self.end_headers()

    monkeypatch.setattr(Handler, "do_GET", redirects)
    assert script.main(["tiny", f"--data_dir={tmp_path}", f"--base_url={server.url}"]) == 2
    assert f"'{elsewhere}' is not an address over https" in capsys.readouterr().err
    assert files_in(tmp_path) == {}


def test_without_pooch_the_command_that_installs_it_is_named(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pooch", None)
    assert script.main(["tiny", f"--data_dir={tmp_path}"]) == 2
    assert "pip install 'fedjax8[fetch]'" in capsys.readouterr().err


# Archives that are unpacked


def packed(files, links=()):
    """A gzipped tar archive in memory."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, goal in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, goal
            archive.addfile(member)
    return target.getvalue()


@pytest.fixture
def fetch_packed(script, serve, tmp_path, monkeypatch):
    """`fetch_packed(content) -> (exit status, server)` for a data set that is one archive, by SHA-256."""

    def run(content):
        source = script.Source("http://127.0.0.1:9/", {"file.bin": hashlib.sha256(content).hexdigest()}, "unpacked")
        monkeypatch.setitem(script.SOURCES, "packed", source)
        server = serve(content)
        return script.main(["packed", f"--data_dir={tmp_path}", f"--base_url={server.url}"]), server

    return run


FILES = {"./a/one.wav": b"1", "./list.txt": b"a/one.wav"}


def test_an_archive_is_unpacked_beside_itself_and_only_once(fetch_packed, tmp_path, capsys):
    content = packed(FILES)
    assert fetch_packed(content)[0] == 0
    unpacked = {"packed/unpacked/a/one.wav": b"1", "packed/unpacked/list.txt": b"a/one.wav"}
    assert files_in(tmp_path) == {"packed/file.bin": content} | unpacked
    (tmp_path / "packed" / "file.bin").unlink()  # as the user may, to save room
    status, server = fetch_packed(content)
    assert status == 0 and server.ranges == [] and files_in(tmp_path) == unpacked
    assert "unpacked is already there" in capsys.readouterr().out


def test_what_an_interrupted_run_unpacked_does_not_stay(fetch_packed, tmp_path):
    (tmp_path / "packed" / "unpacked.part").mkdir(parents=True)
    (tmp_path / "packed" / "unpacked.part" / "half").write_bytes(b"")
    assert fetch_packed(packed(FILES))[0] == 0
    assert set(files_in(tmp_path)) == {"packed/file.bin", "packed/unpacked/a/one.wav", "packed/unpacked/list.txt"}


@pytest.mark.parametrize(
    "content",
    [
        packed(FILES | {"../../evil": b"!"}),
        packed(FILES | {"a/../../../evil": b"!"}),
        packed(FILES | {"way/evil": b"!"}, [("way", "../..")]),
        packed(FILES, [("evil", "/etc/passwd")]),
        packed({"a": CONTENT})[:1000],
        b"no archive",
    ],
    ids=["above", "around", "through a link", "link", "truncated", "other"],
)
def test_archives_that_reach_outside_or_are_damaged_leave_nothing_unpacked(fetch_packed, tmp_path, capsys, content):
    status, _ = fetch_packed(content)
    assert status == 2 and files_in(tmp_path) == {"packed/file.bin": content}
    assert [p.name for p in (tmp_path / "packed").iterdir()] == ["file.bin"]
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "cannot be unpacked" in error


def test_without_a_safe_way_to_unpack_nothing_is(fetch_packed, tmp_path, capsys, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter")
    assert fetch_packed(packed(FILES))[0] == 2
    assert set(files_in(tmp_path)) == {"packed/file.bin"}
    assert "use 3.11.4 or newer" in capsys.readouterr().err
