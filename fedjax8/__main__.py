"""The command `fedjax8`, also `python -m fedjax8`: each of its words is a command line of its own."""

import importlib.util
import runpy
import sys

from fedjax8.errors import UserError
from fedjax8.lookup import suggest

COMMANDS = {
    "train": ("train", "runs an experiment, or goes on with it"),
    "evaluate": ("evaluate", "evaluates the model of a run"),
    "compare": ("compare", "compares runs: a metric, rounds and bytes to a target, as a table and a page"),
    "plot": ("plot", "draws a metric of runs as a picture"),
    "sweep": ("sweep", "runs every point of a grid and every seed"),
    "fetch": ("fetch", "downloads and converts data sets"),
    "convert": ("convert", "writes any source as a folder of clients on disk"),
    "pretrain": ("pretrain", "trains a small model centrally, to be fine-tuned"),
    "list": ("listing", "lists components, their settings and defaults, configs and fields"),
    "template": ("templates.show", "prints a script for a batch system: slurm, tpu"),
    "version": ("", "prints the version"),
}
"""Module below the package and what it does, by command."""


def overview() -> str:
    """The commands, a line each."""
    lines = [f"  fedjax8 {name:<10}{does}" for name, (_, does) in COMMANDS.items()]
    return "\n".join(["usage: fedjax8 COMMAND [ARGUMENTS]", "", *lines, "", "fedjax8 COMMAND --help lists its flags."])


def main(argv: list[str] | None = None) -> int:
    """Runs the command that `argv` (by default `sys.argv`) names; the exit status, where the command does not exit
    itself."""
    _, *arguments = sys.argv if argv is None else argv
    command, *rest = arguments or [""]
    if command in ("", "--help", "-h", "-help", "help"):
        print(overview())
        return 0 if command else 2
    if command in ("version", "--version", "-version"):
        from fedjax8.version import __version__

        print(__version__)
        return 0
    module = f"fedjax8.{COMMANDS.get(command, ('', ''))[0]}"
    if command not in COMMANDS or importlib.util.find_spec(module) is None:
        from fedjax8 import cli

        hint = "; flags come after a command: fedjax8 train ..." if command.startswith("-") else ""
        error = UserError(
            f"no command {command!r}: there are {', '.join(COMMANDS)}{hint or suggest(command, COMMANDS)}"
        )
        return cli.report(error)
    sys.argv = [f"fedjax8 {command}", *rest]
    if "" not in sys.path:  # so that components of one's own are found in the working folder, as by python -m
        sys.path.insert(0, "")
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
