"""The flag `--data_dir` of the programs that read data."""

from absl import flags

from fedjax8.cli import path_of

DATA_DIR = flags.DEFINE_string("data_dir", None, "Where data sets lie; default $FEDJAX8_DATA.")


def data_dir() -> str | None:
    """Where data sets lie, by the flag."""
    return str(path_of(DATA_DIR.value)) if DATA_DIR.value else None
