import io
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax8.compare import print_comparison
from fedjax8.results.comparison import compare_runs
from fedjax8.results.report import table

ROOT = Path(__file__).parents[1]
WITHOUT_PLOTLY = (
    "import runpy, sys; sys.modules['plotly'] = None; "
    "runpy.run_module('fedjax8.compare', run_name='__main__', alter_sys=True)"
)


@pytest.fixture
def runs(tmp_path, write_run):
    write_run(
        tmp_path / "runs" / "full", [0.2, 0.6, 0.9], (4000, 0), uplink={"name": "none"}, downlink={"name": "none"}
    )
    write_run(tmp_path / "runs" / "fp8", [0.2, 0.5, 0.8], (1000, 0), uplink={"name": "fp8"}, downlink={"name": "fp8"})
    return tmp_path


def command(folder, *arguments, start=("-m", "fedjax8.compare")):
    """What a shell in `folder` gets; warnings are errors there too."""
    return subprocess.run(
        [sys.executable, "-W", "error", *start, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def cells_of(text):
    """The cells of a plain table, row by row."""
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "|" in line]


def test_the_command_prints_a_plain_table_and_writes_page_and_picture(runs):
    done = command(runs, "runs/full", "runs/fp8", "--target=0.8", "--margin=0.1", "--figure=a.png")
    assert (done.returncode, done.stderr) == (0, "")
    cells = cells_of(done.stdout)
    # 0.8 is reached in round 3 by both: 12000 and 3000 bytes
    assert cells == [
        [
            "setting",
            "target accuracy",
            "bytes to target",
            "gain in bytes",
            "best accuracy",
            "final accuracy",
            "bytes up",
        ],
        ["uplink=none, downlink=none", "80.00%", "12.0 kB", "1.00x", "90.00%", "90.00%", "12.0 kB"],
        ["uplink=fp8, downlink=fp8", "80.00%", "3.00 kB", "4.00x", "80.00%", "80.00%", "3.00 kB"],
    ]
    assert (
        "The same for all: seeds 1, rounds to target 3, reference rounds 3, gain in rounds 1.00x, reference bytes "
        "12.0 kB, rounds 3, bytes down 0 B, saving 4.00x, seconds 9.0. Target"
    ) in " ".join(done.stdout.split())
    assert "Target accuracy: 80.00%, as given." in done.stdout
    assert "\x1b" not in done.stdout
    assert 'data-panel="metric-bytes"' in (runs / "comparison.html").read_text(encoding="utf-8")
    assert (runs / "a.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in runs.iterdir()) == ["a.png", "comparison.html", "runs"]


def test_an_empty_html_flag_writes_no_page_and_warnings_go_to_stderr(runs):
    (runs / "runs" / "fp8" / "summary.json").unlink()
    done = command(runs, "runs/full", "runs/fp8", "--html=")
    assert done.returncode == 0
    assert done.stderr == "warning: runs/fp8: the run is unfinished, read up to round 3\n"
    assert [p.name for p in runs.iterdir()] == ["runs"]


def test_without_plotly_the_table_is_printed_and_a_line_says_how_to_get_the_page(runs):
    done = command(runs, "runs/full", start=("-c", WITHOUT_PLOTLY))
    assert done.returncode == 0 and "not reached" not in done.stdout and "90.00%" in done.stdout
    assert done.stderr == "no page of plots without plotly: pip install 'fedjax8[report]'\n"
    asked = command(runs, "runs/full", "--html=a.html", start=("-c", WITHOUT_PLOTLY))
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr == "fedjax8: the report needs plotly: pip install 'fedjax8[report]'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no run folder given"),
        (["runs/absent"], "no such run folder: 'runs/absent'"),
        (["."], "its subfolders do: give ./*"),
        (["runs/full", "--target=1.5"], "target 1.5 is no test accuracy"),
        (["runs/full", "--taget=0.5"], "taget"),
        (["runs/full", "--margin=2"], "margin 2 is no difference of accuracy"),
        (["runs/full", "--figure=a.jpg"], "pictures are PNG, SVG or PDF"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(runs, arguments, message):
    done = command(runs, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedjax8: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [p.name for p in runs.iterdir()] == ["runs"]


def test_metric_tables_and_tags_are_flags(tmp_path, write_run):
    document = {"task": {"metric": "mae", "directions": {"mae": "lower"}}, "labels": {"tags": ["paper"]}}
    made = {"metric": "mae", "document": document}
    write_run(tmp_path / "runs" / "full", [4.0, 2.0, 1.0], (400, 0), bits=32, **made)
    write_run(tmp_path / "runs" / "eight", [3.0, 1.5, 1.005], (100, 0), bits=8, **made)
    write_run(tmp_path / "runs" / "other", [3.0, 1.5, 1.005], (100, 0), bits=4, metric="mae")
    flags = ["--html=", "--csv=a.csv", "--latex=a.tex", "--figure=a.svg", "--tag=paper"]
    done = command(tmp_path, "runs/full", "runs/eight", "runs/other", *flags)
    assert (done.returncode, done.stderr) == (0, "")
    assert cells_of(done.stdout)[2][:4] == ["bits=8", "1.005", "300 B", "4.00x"]
    assert done.stdout.endswith("wrote a.svg\nwrote a.csv\nwrote a.tex\n")
    assert (
        (tmp_path / "a.csv")
        .read_text()
        .startswith("setting,tags,bits,seeds,target_mae,target_mae_std,rounds_to_target")
    )
    assert "8 & 1.005 & 300 B & 4.00$\\times$ & 1.005 & 1.005 \\\\\n" in (tmp_path / "a.tex").read_text()
    assert "<svg" in (tmp_path / "a.svg").read_text()
    by_loss = command(tmp_path, "runs/full", "runs/eight", "--html=", "--metric=loss")
    assert "target loss" in by_loss.stdout and "MAE" not in by_loss.stdout


def test_watching_writes_the_page_until_the_runs_are_finished(runs):
    folder = runs / "runs" / "fp8"
    done = (folder / "summary.json").read_bytes()
    (folder / "summary.json").unlink()
    watching = subprocess.Popen(
        [sys.executable, "-m", "fedjax8.compare", "runs/full", "runs/fp8", "--watch=0.2"],
        cwd=runs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        assert watching.stdout.readline().endswith("1 of 2 runs at work; wrote comparison.html\n")
        assert '<meta http-equiv="refresh" content="0.2">' in (runs / "comparison.html").read_text(encoding="utf-8")
        (folder / "summary.json").write_bytes(done)
        rest = watching.communicate(timeout=60)[0]
    finally:
        watching.kill()
    assert watching.returncode == 0 and "gain in bytes" in rest and rest.endswith("wrote comparison.html\n")
    assert 'http-equiv="refresh"' not in (runs / "comparison.html").read_text(encoding="utf-8")


def test_watching_ends_when_the_runs_that_are_not_finished_have_crashed(runs):
    for name in ("full", "fp8"):
        (runs / "runs" / name / "summary.json").unlink()
    crashed = subprocess.Popen([sys.executable, "-c", ""])
    crashed.wait()
    for name, owner in (("full", os.getpid()), ("fp8", crashed.pid)):
        (runs / "runs" / name / ".lock").write_text(f"process {owner} on {socket.gethostname()}\n")
    watching = subprocess.Popen(
        [sys.executable, "-m", "fedjax8.compare", "runs/full", "runs/fp8", "--watch=0.2"],
        cwd=runs,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        said = "1 of 2 runs at work; stopped before their end: runs/fp8; wrote comparison.html\n"
        assert watching.stdout.readline().endswith(said)
        (runs / "runs" / "full" / ".lock").write_text(f"process {crashed.pid} on {socket.gethostname()}\n")
        rest, warnings = watching.communicate(timeout=60)
    finally:
        watching.kill()
    assert watching.returncode == 0 and "gain in bytes" in rest
    for name in ("full", "fp8"):
        assert f"warning: runs/{name} has stopped before its end; its command goes on with it" in warnings


def test_a_run_counts_as_stopped_only_where_its_process_is_known_to_be_gone(tmp_path):
    from fedjax8.compare import stopped_at

    assert not stopped_at(tmp_path)
    for text in ("", "process x", f"process 999999999 on not-{socket.gethostname()}\n", "process 1 on nowhere"):
        (tmp_path / ".lock").write_text(text)
        assert not stopped_at(tmp_path)
    (tmp_path / ".lock").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    assert not stopped_at(tmp_path)


def test_watching_a_run_that_crashed_before_its_first_round_is_an_error(runs):
    crashed = subprocess.Popen([sys.executable, "-c", ""])
    crashed.wait()
    (runs / "runs" / "new").mkdir()
    (runs / "runs" / "new" / ".lock").write_text(f"process {crashed.pid} on {socket.gethostname()}\n")
    found = command(runs, "runs/full", "runs/new", "--watch=0.2")
    assert found.returncode == 2 and "runs/new stopped before its first round" in found.stderr


def test_a_flag_without_seconds_watches_every_ten():
    from absl import flags

    from fedjax8 import compare

    held = flags.FlagValues()
    flags.DEFINE_float("watch", None, "", flag_values=held)
    assert held(["compare", *compare.with_seconds(["a", "--watch", "--html="])[:2]])[1:] == ["a"] and held.watch == 10
    assert compare.with_seconds(["--watch=3"]) == ["--watch=3"]


def test_comparing_and_plotting_do_not_import_jax(runs):
    code = "import sys, fedjax8.compare, fedjax8.plot; sys.exit('jax' in sys.modules)"
    assert command(runs, start=("-c", code)).returncode == 0


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_terminal_gets_every_cell_uncut_within_its_width(runs, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    found = compare_runs([runs / "runs" / "full", runs / "runs" / "fp8"])
    stream = Terminal()
    print_comparison(found, stream)
    text = re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for row in table(found).rows:
        for cell in row:
            assert all(part in text for part in cell.split(", "))


def test_into_a_file_the_table_is_not_folded(runs, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    found = compare_runs([runs / "runs" / "full", runs / "runs" / "fp8"])
    stream = io.StringIO()
    print_comparison(found, stream)
    (line,) = [line for line in stream.getvalue().splitlines() if line.startswith("| uplink=fp8")]
    assert [cell.strip() for cell in line.split("|")[1:-1]] == list(table(found).rows[1])


def test_a_stream_that_cannot_write_plus_minus_does_not_fail(tmp_path, write_run):
    raw = io.BytesIO()
    write_run(tmp_path / "a", [0.5, 0.6], seed=1)
    write_run(tmp_path / "b", [0.7, 0.8], seed=2)
    stream = io.TextIOWrapper(raw, encoding="ascii")
    print_comparison(compare_runs([tmp_path / "a", tmp_path / "b"]), stream)
    stream.flush()
    assert b"70.00 ? 14.14%" in raw.getvalue()
