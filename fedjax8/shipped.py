"""Configs that come with the package, by name."""

import os
from pathlib import Path

from fedjax8.cli import path_of
from fedjax8.errors import UserError
from fedjax8.lookup import suggest

SCHEME = "fedjax8://"
"""Prefix of a name of a config in the package."""
FOLDER = Path(__file__).with_name("configs")


def shipped_configs() -> list[str]:
    """Names of the configs in `fedjax8/configs`."""
    return sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))


def config_file(text: str) -> tuple[str, str]:
    """(path, argument) of the Python file that `--config` names, whether or not it is there.

    A text that ends in `.py` or has a slash in it is a file; any other, and one that begins with `fedjax8://`, is the
    name of a config of ours, whatever lies in the working folder. Raises UserError for an unknown name.
    """
    given, _, argument = text.removeprefix(SCHEME).partition(":")
    if not text.startswith(SCHEME) and (given.endswith(".py") or "/" in given or os.sep in given):
        return str(path_of(given)), argument
    known = shipped_configs()
    if given not in known:
        here = f"; for the file {given}.py here give --config=./{given}.py" if Path(f"{given}.py").is_file() else ""
        raise UserError(
            f"--config: no config {given!r} in fedjax8: allowed are {', '.join(known)}{suggest(given, known)}{here}"
        )
    return str(FOLDER / f"{given}.py"), argument


def no_config_file(path: str, argument: str) -> str:
    """The message for a file that is not there."""
    name = Path(path).stem
    meant = f"; did you mean --config={name}{argument and ':'}{argument}?" if name in shipped_configs() else ""
    return (
        f"--config: no file {path!r}; give a Python file with a get_config(), a name such as fp8 (fedjax8 list configs "
        f"has all), or the config.json of a run{meant}"
    )
