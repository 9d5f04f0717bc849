"""Tasks of a new user, each a script of a dozen lines. `scripts/check_wheel.sh` runs them from an installed wheel."""

import ast
import importlib.util
import pathlib
import re
import runpy
import subprocess
import sys

import pytest

TASKS = sorted(pathlib.Path(__file__).with_name("user_tasks").glob("*.py"))
CHEAP = ("csv_regression", "language_model", "leaf_json", "load_evaluate_export", "per_client_table", "tensorboard")
"""Those that take two or three seconds in a process that has JAX loaded."""
PACKAGES = {"csv": "pyarrow", "hf": "datasets"}
"""What an extra brings, by its name."""


def skip_without_its_extra(file: pathlib.Path) -> None:
    for extra in re.findall(r"fedjax8\[(\w+)\]", file.read_text()):
        if importlib.util.find_spec(PACKAGES[extra]) is None:
            pytest.skip(f"needs pip install 'fedjax8[{extra}]'")


def test_there_are_twelve_and_more():
    assert len(TASKS) >= 12 and {file.stem for file in TASKS} >= set(CHEAP)


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_a_task_takes_a_dozen_lines_and_says_what_should_come_out(file):
    lines = [line for line in file.read_text().splitlines() if line.strip()]
    assert lines[0].startswith('"""') and len(lines) <= 12 and max(map(len, lines)) <= 120
    body = ast.parse(file.read_text()).body
    assert any(isinstance(statement, ast.Assert) for statement in body)


@pytest.mark.parametrize("file", [file for file in TASKS if file.stem in CHEAP], ids=lambda file: file.stem)
def test_a_cheap_task_is_done_in_this_process(file, tmp_path, monkeypatch):
    skip_without_its_extra(file)
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(file), run_name="__main__")
    assert {"run", "found", "events"} & set(names)  # what its own last line looks at


@pytest.mark.slow
@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_a_task_is_done(file, tmp_path):
    skip_without_its_extra(file)
    done = subprocess.run([sys.executable, file], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
