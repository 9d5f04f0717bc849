"""README is short, its program runs as it stands, what it names exists, its figures are those of the benchmarks."""

import pathlib
import re

import numpy as np
import pytest

from fedjax8.__main__ import COMMANDS
from fedjax8.version import __version__

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
SHELL = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
LONGEST = 900
"""Words, those of commands and tables among them."""


def test_it_is_short():
    assert len(TEXT.split()) <= LONGEST


def test_its_program_is_five_lines_that_run_and_count_their_bytes(monkeypatch):
    pytest.importorskip("matplotlib")
    (program,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len([line for line in program.splitlines() if line]) <= 5
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)
    run = names["run"]
    weights, biases, clips = 64 * 200 + 200 * 10, 200 + 10, 4  # of the model `mlp` as it is by default
    message = weights + 4 * biases + 4 * clips
    assert [line["uplink_bytes"] for line in run.metrics] == [r * 10 * message for r in range(1, 21)]
    assert run.summary["downlink_bytes"] == 20 * 10 * message
    assert np.isfinite(run.summary["test_loss"])


def test_every_file_and_script_it_names_is_there():
    named = set(re.findall(r"((?:configs|scripts|docs|examples)/[\w./]+\.\w+)", TEXT))
    assert {"scripts/train.sh", "scripts/test.sh", "scripts/bench_torch.py"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_every_command_it_names_is_one():
    named = set(re.findall(r"^fedjax8 (\w+)", "".join(SHELL), re.MULTILINE)) | set(re.findall(r"`fedjax8 (\w+)", TEXT))
    assert {"train", "compare", "list"} <= named <= set(COMMANDS)


def test_the_table_of_peers_is_that_of_the_benchmarks():
    measured = (ROOT / "docs" / "benchmarks.md").read_text()
    section = re.search(r"## A local step, against PyTorch\n(.*?)\n## ", measured, re.DOTALL)[1]
    rows = {
        row[0]: row for row in (re.split(r" *\| *", line.strip("| ")) for line in section.splitlines()) if len(row) > 3
    }
    shown = re.findall(r"^\| (W\d): [^|]*\| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", TEXT, re.MULTILINE)
    assert {name for name, *_ in shown} == {name for name in rows if re.fullmatch(r"W\d", name)}
    for name, ours, theirs, ratio in shown:
        _, measured_ours, processes, threads, to_the_better, _ = rows[name]
        assert (ours, ratio) == (measured_ours, to_the_better)
        assert float(theirs) == min(float(processes), float(threads))
    command = re.search(r"`(python scripts/bench_torch.py[^`]*)`", TEXT.replace("\n", " "))[1]
    assert command in measured and "AMD EPYC, 2 cores" in measured and "2026-11-30" in measured


def test_the_citation_is_that_of_the_file():
    citation = (ROOT / "CITATION.cff").read_text()
    entry = re.search(r"```bibtex\n(.*?)```", TEXT, re.DOTALL)[1].replace("{JAX}", "JAX")
    fields = dict(re.findall(r"^ *(\w+) *= \{+(.*?)\}+,?$", entry, re.MULTILINE))
    assert f'title: "{fields["title"]}"' in citation
    assert f"name: {fields['author']}\n" in citation
    assert f"version: {fields['version']}\n" in citation and f'date-released: "{fields["year"]}-' in citation
    assert f"license: {fields['license']}\n" in citation
    assert f"fedjax8-{__version__}-py3-none-any.whl" in TEXT
