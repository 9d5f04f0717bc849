"""Killed fifty times, a run is as if nothing had been. Slow: 106 s of computing, two minutes on idle cores.

The faults that need no process of their own are in tests/running/test_faults_of_runs.py.
"""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
CACHE = ROOT / ".pytest_cache" / "jax"
KILLS = 50
FLAGS = (
    "--config.rounds=160",
    "--config.eval_every=7",
    "--config.checkpoint_every=2",
    "--config.model.hidden=(4,)",
    "--config.num_clients=6",
    "--config.cohort_size=3",
    "--config.client.epochs=1",
    "--config.client.batch_size=50",
    "--config.algorithm.name=scaffold",
    "--cpu_devices=1",
)

DRIVER = """
import os, pathlib, random, signal, sys, time

import orbax.checkpoint, sklearn.datasets
import fedjax8.build, fedjax8.running.runner, fedjax8.engine.side_by_side, fedjax8.tune
from fedjax8 import cli, train

# Everything is imported and JAX not begun, so that a life of the run is a fork of this process and starts at once.
folder, kills, flags = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]


def begin(name):
    child = os.fork()
    if child:
        return child
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.argv = ["train", *flags, f"--workdir={folder / name}"]
    try:
        cli.run(train.main, train.parse_flags)
    except SystemExit as stop:
        os._exit(stop.code or 0)
    os._exit(99)


def written(name):
    path = folder / name / "metrics.jsonl"
    return path.stat().st_mtime_ns if path.exists() else 0


def ended(child):
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


assert os.waitstatus_to_exitcode(os.waitpid(begin("whole"), 0)[1]) == 0  # which fills the compilation cache
moments, count, at_work, status, life = random.Random(5), 0, 0, None, 1.0
while status is None:
    start, before, child = time.monotonic(), written("killed"), begin("killed")
    if count < kills and count % 2:  # at any moment of starting
        time.sleep(moments.uniform(0.0, life))
    elif count < kills:  # or while rounds are done, written and saved
        while written("killed") == before and not ended(child):
            time.sleep(0.002)
        life = time.monotonic() - start
        time.sleep(moments.uniform(0.0, 0.1))
    if count < kills:
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGKILL:
        at_work += written("killed") != before
        count += 1
    else:
        status = code
print("kills:", count, "at work:", at_work, "last exit:", status, flush=True)
"""


def lines(folder):
    read = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_seconds")} for line in read]


def model(folder):
    """(round, arrays) of the newest checkpoint, read without the program."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(folder / "checkpoints") as manager:
        found = manager.restore(manager.latest_step(), args=ocp.args.Composite(arrays=ocp.args.StandardRestore()))
        return manager.latest_step(), found.arrays


def test_killed_at_fifty_moments_a_run_ends_as_if_nothing_had_been(tmp_path):
    import jax

    cache = {"JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path), str(KILLS), *FLAGS],
        cwd=ROOT,
        env=os.environ | cache | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-1]
    assert said.startswith(f"kills: {KILLS} ") and said.endswith("last exit: 0"), done.stdout
    assert int(said.split()[4]) >= KILLS // 3  # of these, so many in the midst of rounds
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    (step, killed), (expected_step, whole) = model(tmp_path / "killed"), model(tmp_path / "whole")
    assert step == expected_step == 160
    for a, b in zip(jax.tree.leaves(killed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    assert {path.name for path in (tmp_path / "killed").iterdir()} == {
        path.name for path in (tmp_path / "whole").iterdir()
    }
