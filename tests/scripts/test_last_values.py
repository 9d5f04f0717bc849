"""The table of what runs logged last: means over seeds, dashes where nothing was logged."""

import pathlib
import subprocess
import sys

SCRIPT = pathlib.Path(__file__).parents[2] / "scripts" / "last_values.py"


def run(*arguments):
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True)


def test_a_row_is_the_mean_over_seeds_of_the_last_value_logged(tmp_path, write_run):
    write_run(tmp_path / "a-seed0", [0.1, 0.5], every=2, name="a")
    write_run(tmp_path / "a-seed1", [0.2, 0.7], every=2, seed=1, name="a")
    write_run(tmp_path / "b-seed0", [0.3, 0.4], loss=False, name="b")
    done = run(*sorted(tmp_path.iterdir()), "--values=test_accuracy,test_loss")
    assert done.returncode == 0, done.stderr
    # The loss is 1 / round: the four rounds of a end at 1/4, and b has none.
    assert done.stdout.splitlines() == [
        "| setting | test_accuracy | test_loss |",
        "|---|---|---|",
        "| name=a | 0.6 | 0.25 |",
        "| name=b | 0.4 | - |",
    ]


def test_a_folder_that_is_not_there_is_one_line(tmp_path):
    done = run(tmp_path / "nothing")
    assert done.returncode == 1 and done.stderr.startswith("last_values: no such run folder")
