"""The command `fedjax8`: its words, each a command line, and the templates."""

import pathlib
import subprocess
import sys

import pytest

from fedjax8.__main__ import COMMANDS, main, overview
from fedjax8.errors import UserError
from fedjax8.templates import show
from fedjax8.version import __version__

PACKAGE = pathlib.Path(__file__).parents[1] / "fedjax8"


def test_help_has_a_line_for_each_command(capsys):
    assert main(["fedjax8", "--help"]) == 0
    said = capsys.readouterr().out.splitlines()
    for command, (_, does) in COMMANDS.items():
        assert f"  fedjax8 {command:<10}{does}" in said
    assert main(["fedjax8"]) == 2 and capsys.readouterr().out.strip() == overview()


def test_the_version(capsys):
    for word in ("version", "--version"):
        assert main(["fedjax8", word]) == 0
        assert capsys.readouterr().out.strip() == __version__


def test_a_wrong_command_is_a_line_on_stderr(capsys):
    assert main(["fedjax8", "trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    assert main(["fedjax8", "--config.rounds=3"]) == 2
    assert "flags come after a command: fedjax8 train" in capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c, (module, _) in COMMANDS.items() if module])
def test_every_command_is_a_module_that_runs_as_a_program(command):
    file = PACKAGE / f"{COMMANDS[command][0].replace('.', '/')}.py"
    if command in ("evaluate", "fetch") and not file.exists():
        pytest.skip("not there yet")
    text = file.read_text()
    assert "def main(argv" in text and 'if __name__ == "__main__":' in text


def test_a_command_runs_a_module_of_the_package_with_its_own_arguments():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "fedjax8", "list", "attacks"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "") and "sign_flip" in done.stdout
    done = subprocess.run(
        [sys.executable, "-m", "fedjax8", "list", "codex"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "did you mean 'codecs'" in done.stderr


def test_templates_are_shell_scripts_that_parse(capsys):
    assert set(show.templates()) == {"slurm", "tpu"}
    for name, text in show.templates().items():
        assert show.main(["template", name]) == 0
        assert capsys.readouterr().out == text
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    with pytest.raises(UserError, match=r"no template 'slrum'.*did you mean 'slurm'"):
        show.main(["template", "slrum"])


def test_the_slurm_template_runs_training_and_is_queued_again_only_when_that_helps(tmp_path):
    for name, body in (
        ("srun", 'shift; shift; shift; echo "$@" >>args; exit "$WANTED"'),
        ("scontrol", "echo $@ >>queued"),
    ):
        file = tmp_path / name
        file.write_text(f"#!/usr/bin/env bash\n{body}\n")
        file.chmod(0o755)
    for wanted, again in (("0", False), ("2", False), ("143", True)):
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_SUBMIT_DIR": str(tmp_path), "WANTED": wanted}
        environment |= {"SLURM_JOB_ID": "7"}
        (tmp_path / "queued").unlink(missing_ok=True)
        script = show.templates()["slurm"]
        done = subprocess.run(["bash", "-s", "--", "--workdir=a b"], input=script, text=True, env=environment)
        assert done.returncode == int(wanted)
        assert (tmp_path / "queued").exists() == again
    assert (tmp_path / "args").read_text().splitlines()[0] == "fedjax8.train --distributed --workdir=a b"
