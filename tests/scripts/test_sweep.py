"""Sweeps: what runs, what is skipped, what fails, and how they end. Points are run by a small stand-in for training."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "sweep.py"
TRAIN = """
import json, pathlib, signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
from fedjax8.config import base_config, override, plain
flags = dict(argument.removeprefix("--").split("=", 1) for argument in sys.argv[1:])
config = base_config()
override(config, [(name.removeprefix("config."), value) for name, value in flags.items() if name.startswith("config.")])
folder = pathlib.Path(flags["workdir"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as file:
    file.write("x")
(folder / "config.json").write_text(json.dumps({"config": plain(config)}))
rate = config.client.optimizer.learning_rate
print("rate", rate)
if rate > 1:
    print("Traceback", "ValueError: that rate is too high", sep=chr(10), file=sys.stderr)
    sys.exit(3)
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
(folder / "begun").touch()
while config.rounds == 1000 and not stopped:
    time.sleep(0.02)
line = {"round": 1, "uplink_bytes": 10, "downlink_bytes": 10, "test_accuracy": rate}
(folder / "metrics.jsonl").write_text(json.dumps(line) + chr(10))
summary = {"rounds": 1, "test_accuracy": rate, "finished": not stopped}
(folder / "summary.json").write_text(json.dumps(summary))
sys.exit(143 if stopped else 0)
"""


@pytest.fixture
def stand_in(tmp_path):
    file = tmp_path / "train.py"
    file.write_text(TRAIN)
    return shlex.join([sys.executable, str(file), str(ROOT)])


def start(folder, *arguments, **more):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"} | more
    command = [sys.executable, "-W", "error", SCRIPT, "--out=out", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.Popen(command, cwd=folder, env=env, start_new_session=True, **pipes)


@contextlib.contextmanager
def ended(process):
    """The process, which is ended with the runs that it started, whatever the test does."""
    try:
        yield process
    finally:
        while process.poll() is None:  # the first lets its runs end, the next kills them
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=10)


def sweep(folder, *arguments, **more):
    process = start(folder, *arguments, **more)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


RATES = '--grid="config.client.optimizer.learning_rate={}"'.replace('"', "")


def calls(folder):
    """How often each point was run."""
    return {p.parent.name: len(p.read_text()) for p in sorted((folder / "out").glob("*/calls"))}


def test_every_point_and_seed_is_run_once_finished_ones_are_skipped_and_new_ones_added(tmp_path, stand_in):
    wanted = {f"learning_rate={rate},seed={seed}" for rate in (0.25, 0.5) for seed in (0, 1)}
    files = (f"--csv={tmp_path / 'a.csv'}", f"--latex={tmp_path / 'a.tex'}")
    jobs = ("--seeds=0,1", "--jobs=2", f"--command={stand_in}")
    status, out, err = sweep(tmp_path, RATES.format("0.25,0.5"), *jobs, *files)
    assert (status, err) == (0, "")
    assert calls(tmp_path) == dict.fromkeys(sorted(wanted), 1)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in out.splitlines() if line.startswith("| ")]
    best = cells[0].index("best accuracy")
    assert [[row[0], row[best]] for row in cells[1:]] == [
        ["learning_rate=0.25", "25.00%"],
        ["learning_rate=0.5", "50.00%"],
    ]
    assert "The same for all: seeds 2, " in out
    assert (tmp_path / "a.csv").read_text().splitlines()[2].startswith("learning_rate=0.5,0.5,2,0.25,0,")
    assert "\n0.5 & 25.00\\% & 1.00$\\times$ & 50.00\\% & 50.00\\% \\\\\n" in (tmp_path / "a.tex").read_text()
    # one run has not ended, one is of another config, and one is new
    (tmp_path / "out" / "learning_rate=0.25,seed=0" / "summary.json").unlink()
    other = tmp_path / "out" / "learning_rate=0.25,seed=1" / "config.json"
    other.write_text(other.read_text().replace('"rounds": 60', '"rounds": 61'))
    status, out, _ = sweep(tmp_path, RATES.format("0.25,0.5,0.75"), "--seeds=0,1", f"--command={stand_in}")
    assert status == 0 and "6 runs in out: 2 finished before, 4 to do" in out
    assert calls(tmp_path) == {
        "learning_rate=0.25,seed=0": 2,
        "learning_rate=0.25,seed=1": 2,
        "learning_rate=0.5,seed=0": 1,
        "learning_rate=0.5,seed=1": 1,
        "learning_rate=0.75,seed=0": 1,
        "learning_rate=0.75,seed=1": 1,
    }


def test_a_point_that_fails_does_not_stop_the_others_and_is_told_with_its_last_line(tmp_path, stand_in):
    status, out, err = sweep(tmp_path, RATES.format("2.0,0.5"), f"--command={stand_in}")
    assert status == 1
    assert err == "failed: learning_rate=2.0,seed=0 (status 3): ValueError: that rate is too high\n"
    assert "learning_rate=0.5,seed=0: test accuracy 0.5000" in out
    log = (tmp_path / "out" / "logs" / "learning_rate=2.0,seed=0.txt").read_text()
    assert log.splitlines()[0] == "rate 2.0"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_runs_end_in_their_own_way_and_starts_no_others(tmp_path, stand_in, number):
    arguments = (RATES.format("0.25,0.5,0.75"), "--config.rounds=1000", "--jobs=2", f"--command={stand_in}")
    with ended(start(tmp_path, *arguments)) as process:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out").glob("*/begun"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "failed" not in err and "stopping: 2 at work" in out
    assert len(calls(tmp_path)) == 2
    for summary in (tmp_path / "out").glob("*/summary.json"):
        assert json.loads(summary.read_text())["finished"] is False


def test_a_slurm_array_holds_the_unfinished_points_and_runs_their_commands(tmp_path, stand_in):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, body in (("sbatch", 'echo "submitted $1"'), ("srun", 'shift; exec "$@"')):
        (tools / name).write_text(f"#!/bin/sh\n{body}\n")
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    assert sweep(tmp_path, RATES.format("0.25"), f"--command={stand_in}")[0] == 0
    options = ("--slurm=submit", "--sbatch=--gpus=1 --time=2:00:00", "--jobs=3")
    status, out, _ = sweep(tmp_path, RATES.format("0.25,0.5,0.75"), f"--command={stand_in}", *options, **path)
    assert (status, out.splitlines()[-1]) == (0, "submitted out/sweep.sh")
    script = (tmp_path / "out" / "sweep.sh").read_text()
    assert "#SBATCH --array=1,2%3\n" in script and "#SBATCH --gpus=1\n#SBATCH --time=2:00:00\n" in script
    for task in ("1", "2"):
        done = subprocess.run(
            ["bash", "out/sweep.sh"], cwd=tmp_path, env={**os.environ, "SLURM_ARRAY_TASK_ID": task, **path}
        )
        assert done.returncode == 0
    assert calls(tmp_path) == {f"learning_rate={rate},seed=0": 1 for rate in (0.25, 0.5, 0.75)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid=config.client.epoch=1,2"], "no field config.client.epoch"),
        (["--grid=client.epochs=1"], "--grid: give config.FIELD=VALUE"),
        (["--grid=config.client.epochs=1,1"], "two points of the grid are epochs=1,seed=0"),
        (["--config.seed=3"], "a sweep sets that itself"),
        (["--workdir=a"], "a sweep sets that itself"),
        (["rounds=3"], "unexpected argument 'rounds=3'"),
    ],
)
def test_a_mistake_is_found_before_anything_runs(tmp_path, stand_in, arguments, message):
    status, out, err = sweep(tmp_path, *arguments, f"--command={stand_in}")
    assert (status, out) == (2, "")
    assert err.startswith("fedjax8: ") and message in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_grids_cases_and_config_files_are_combined(tmp_path, stand_in):
    config = tmp_path / "mine.py"
    config.write_text(
        "from fedjax8.config import base_config\n\n\ndef get_config(word=''):\n    config = base_config()\n"
        "    config.cohort_size = 5 if word == 'few' else 10\n    return config\n"
    )
    tools = ["--slurm=write", f"--command={stand_in}"]
    axes = [f"--config={config}:few", f"--config={config}", "--grid=config.model.hidden=(8,),(16, 8)"]
    cases = ["--case=", "--case=config.uplink.name=none --config.downlink.name=none"]
    assert sweep(tmp_path, *axes, *cases, *tools)[0] == 0
    commands = (tmp_path / "out" / "points.txt").read_text().splitlines()
    names = [pathlib.Path(shlex.split(command)[-1]).name for command in commands]
    assert len(names) == len(set(names)) == 8
    assert (names[0], names[-1]) == (
        "mine-few,base,hidden=8,seed=0",
        "mine,uplink=none,downlink=none,hidden=16-8,seed=0",
    )
    last = shlex.split(commands[-1])
    assert last[3:-1] == [
        f"--config={config}", "--config.uplink.name=none", "--config.downlink.name=none",
        "--config.model.hidden=(16, 8)", "--config.seed=0",
    ]  # fmt: skip
