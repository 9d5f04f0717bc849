"""Output that cannot be written ends nothing."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from fedjax8.running.console import ProgressReport
from fedjax8.streams import Unbroken, console_on, unbroken

ROOT = pathlib.Path(__file__).parents[1]


def full_disk():
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    return open("/dev/full", "w")


def pipe_without_reader():
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize(("broken", "why"), [(full_disk, "No space left"), (pipe_without_reader, "Broken pipe")])
def test_a_stream_that_cannot_be_written_is_said_once_and_then_takes_everything(broken, why, capsys):
    stream = broken()
    safe = unbroken(stream)
    for _ in range(3):
        safe.write("a line\n")
        safe.flush()
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and why in said and said.startswith("fedjax8: stdout cannot be written")
    stream.close()  # flushes: the descriptor is the null device's by now


def test_a_whole_report_goes_to_a_pipe_without_reader(capsys):
    stream = pipe_without_reader()
    with ProgressReport(2, console=console_on(stream)) as report:
        report.say("heading")
        line = {"round": 1, "test_loss": 0.5, "uplink_bytes": 1, "downlink_bytes": 1, "round_seconds": 0.1}
        report.round_done(line)
    stream.close()
    assert "Broken pipe" in capsys.readouterr().err


def test_a_stream_that_works_gets_what_is_written_and_is_wrapped_once():
    stream = io.StringIO()
    safe = unbroken(stream)
    assert safe.write("words") == 5 and stream.getvalue() == "words"
    assert unbroken(safe) is safe and safe.isatty() is False
    assert isinstance(console_on(stream).file, Unbroken)


@pytest.mark.parametrize("columns", ["0", "1"])
def test_a_terminal_without_columns_has_some(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    stream = io.StringIO()
    console_on(stream).print("a line of words")
    assert stream.getvalue() == "a line of words\n"


def test_files_opened_later_do_not_take_the_numbers_of_closed_streams():
    code = (
        "import os, sys\n"
        "from fedjax8.streams import keep_standard_streams\n"
        "keep_standard_streams()\n"
        "print('nobody reads this'); print('nor this', file=sys.stderr)\n"
        "file = open(sys.argv[1], 'w')\n"
        "file.write(str(file.fileno() > 2))\n"
    )
    out = ROOT / ".pytest_cache" / f"closed-{os.getpid()}"
    out.parent.mkdir(exist_ok=True)
    shell = f'exec {sys.executable} -c "$0" {out} <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", shell, code], cwd=ROOT, timeout=60).returncode == 0
    assert out.read_text() == "True"
    out.unlink()


def test_what_an_encoding_lacks_is_a_question_mark():
    code = "from fedjax8.streams import keep_standard_streams as k; k(); print(chr(177))"
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, b"?\n")
