"""Tasks of a new user, each a script of a dozen lines. `scripts/check_wheel.sh` runs them from an installed wheel."""

import pathlib
import subprocess
import sys

import pytest

TASKS = sorted(pathlib.Path(__file__).with_name("user_tasks").glob("*.py"))


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_a_task_takes_a_dozen_lines(file):
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    assert lines[0].startswith('"""') and len(lines) <= 12


@pytest.mark.slow
@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_a_task_is_done(file, tmp_path):
    done = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
