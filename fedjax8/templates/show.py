"""Prints a script for a batch system, to be kept and changed.

fedjax8 template slurm > slurm.sh
fedjax8 template tpu > tpu.sh
"""

from importlib import resources

from fedjax8 import cli
from fedjax8.errors import UserError
from fedjax8.lookup import suggest


def templates() -> dict[str, str]:
    """Texts of the scripts by name."""
    files = [file for file in resources.files("fedjax8.templates").iterdir() if file.name.endswith(".sh")]
    return {file.name.removesuffix(".sh"): file.read_text() for file in sorted(files, key=lambda file: file.name)}


def main(argv: list[str]) -> int:
    """Prints the script that `argv` names; the exit status is 0."""
    known = templates()
    if len(argv) != 2 or argv[1] not in known:
        given = f"no template {argv[1]!r}" if len(argv) > 1 else "no template named"
        raise UserError(f"{given}: there are {', '.join(known)}{suggest(argv[1], known) if len(argv) > 1 else ''}")
    print(known[argv[1]], end="")
    return 0


if __name__ == "__main__":
    cli.run(main)
