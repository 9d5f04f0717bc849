"""Notebooks in examples/: jupytext percent scripts that begin with a title, say how long they take, and run."""

import ast
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted(f for f in (ROOT / "examples").glob("*.py") if "# %%" in f.read_text())
LIMIT_SECONDS = 900
"""The longest takes a minute and a half on two idle cores, and took nine where six programs shared them."""


def cells(text: str) -> list[tuple[str, str]]:
    """(kind, text) of the cells behind the header, `markdown` or `code`."""
    parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)
    assert set(parts[1::2]) <= {"", " [markdown]"}
    return [("markdown" if mark else "code", cell) for mark, cell in zip(parts[1::2], parts[2::2], strict=True)]


def test_there_are_notebooks():
    assert {"first_steps", "own_algorithm", "own_codec", "fp8_numerics"} <= {f.stem for f in NOTEBOOKS}


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_is_a_percent_script_with_a_title_and_its_time(file):
    text = file.read_text()
    assert text.startswith("# ---\n# jupyter:\n") and "formats: py:percent" in text.split("# %%")[0]
    found = cells(text)
    kind, first = found[0]
    assert kind == "markdown" and re.match(r"# # \S", first)
    assert re.search(r"Takes\s+(# )?about", first.replace("\n", " ")), "the first cell says how long it takes"
    for kind, cell in found:
        if kind == "markdown":
            assert all(line.startswith("#") or not line.strip() for line in cell.split("\n"))
        else:
            ast.parse(cell)
    assert {"markdown", "code"} == {kind for kind, _ in found}


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda f: f.stem)
def test_a_notebook_runs_as_a_script(file, tmp_path):
    own = {"MPLBACKEND": "Agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-W", "error", str(file)]
    done = subprocess.run(command, cwd=tmp_path, env=kept | own, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout
    assert list(tmp_path.iterdir()) == []
