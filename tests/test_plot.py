import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax8.plot import plot_runs

ROOT = Path(__file__).parents[1]


@pytest.fixture
def runs(tmp_path, write_folder):
    for name, factor in (("full", 4), ("fp8", 1)):
        lines = [
            {"round": r, "uplink_bytes": r * factor, "downlink_bytes": r, "test_accuracy": r / 10, "epsilon": r}
            for r in range(1, 6)
        ]
        write_folder(tmp_path / "runs" / name, {"seed": 0, "uplink": {"name": name}}, lines)
    return tmp_path


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "fedjax8.plot", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def test_the_command_writes_the_picture_it_names(runs):
    done = command(runs, "runs/full", "runs/fp8", "--out=a.png", "--x=rounds", "--y=epsilon", "--smooth=2")
    assert (done.returncode, done.stdout, done.stderr) == (0, "wrote a.png\n", "")
    assert (runs / "a.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out=a.png"], "no run folder given"),
        (["runs/full"], "no picture named: add --out=FILE.png"),
        (["runs/full", "--out=a.jpg"], "pictures are PNG, SVG or PDF"),
        (["runs/full", "--out=a.png", "--x=epochs"], "bytes"),
        (["runs/full", "--out=a.png", "--y=test_acc"], "nothing to draw"),
        (["runs/full", "--out=absent/a.png"], "cannot write absent/a.png"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(runs, arguments, message):
    done = command(runs, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("fedjax8: ") and message in done.stderr
    assert done.stderr.count("\n") == 1
    assert [p.name for p in runs.iterdir()] == ["runs"]


def test_plot_runs_is_at_hand_for_a_notebook(runs):
    ax = plot_runs([runs / "runs" / "full", runs / "runs" / "fp8"])
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["uplink=full", "uplink=fp8"]
