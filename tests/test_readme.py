"""The programs in the README run as they stand, and the commands it names exist."""

import pathlib
import re

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_the_python_programs_run_and_count_their_bytes(capsys):
    programs = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(programs) == 2
    names: dict = {}
    exec(compile(programs[0], "README.md", "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert 1 < len([line for line in programs[0].splitlines() if line and "import" not in line]) <= 10
    weights, biases, clips = 64 * 128 + 128 * 10, 128 + 10, 4
    message = weights + 4 * biases + 4 * clips
    assert names["metrics"]["uplink_bytes"] == 3 * 10 * message
    assert np.isfinite(names["metrics"]["train_loss"])
    exec(compile(programs[1], "README.md", "exec"), names)
    assert names["metrics"]["uplink_bytes"] == 10 * 2 * (weights + biases + clips)
    assert names["metrics"]["downlink_bytes"] == 10 * message


def test_every_file_and_script_it_names_is_there():
    named = set(re.findall(r"((?:configs|scripts|\.images)/[\w./]+\.\w+)", TEXT))
    assert {"scripts/train.sh", "scripts/test.sh", "scripts/bench.py"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
