"""Evaluates a run's model.

    python -m fedjax8.evaluate RUN [--round=N] [--data_dir=DIR] [--config.data.SETTING=VALUE ...] [--as_json]

Prints the metrics on the test rows, of every view of the model: as it runs, and in float32 where it is quantized.
--config.data.* evaluates on the test rows of other data, which must be like those that it was trained on.

Examples:
  python -m fedjax8.evaluate runs/digits
  python -m fedjax8.evaluate runs/digits --round=40 --as_json
  python -m fedjax8.evaluate runs/digits --config.data.name=npz --config.data.file=mine.npz --data_dir=DIR
"""

import copy
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from fedjax8 import cli
from fedjax8.compilation_cache import use_compilation_cache
from fedjax8.config import override
from fedjax8.data_flag import DATA_DIR, data_dir
from fedjax8.devices import check_jax, set_up_devices, start_devices
from fedjax8.errors import UserError
from fedjax8.overrides import split_overrides

if TYPE_CHECKING:  # JAX must not start before the devices are set up
    from fedjax8.loading import LoadedRun

_ROUND = flags.DEFINE_integer(
    "round", None, "Round of the model, of which there must be a checkpoint; the last if not given.", lower_bound=1
)
_DATA_DIR = DATA_DIR
_JSON = flags.DEFINE_bool("as_json", False, "Print one line of JSON.")
OURS = tuple(holder.name for holder in list(globals().values()) if isinstance(holder, flags.FlagHolder))
"""Names of this program's flags."""


def main(argv: list[str]) -> int:
    """Evaluates the run that a command line names, and prints its metrics; the exit status.

    `argv` is a whole command line: `main(["evaluate", "runs/a"])`, also several times in a process.
    """
    from fedjax8.loading import load

    try:
        rest, pairs = split_overrides(parse_flags(argv))
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error
    if len(rest) != 2:
        raise UserError(f"give the folder of one run, such as runs/a; got {' '.join(rest[1:]) or 'none'}")
    if others := [path for path, _ in pairs if path.split(".")[0] != "data"]:
        raise UserError(
            f"--config.{others[0]} belongs to the run and cannot be changed for an evaluation; --config.data.* can"
        )
    run = load(rest[1], data_dir())
    check_jax()
    use_compilation_cache()
    set_up_devices(None, run.config.cohort_size)
    start_devices()
    rows = test_rows(run, pairs) if pairs else None
    found = run.evaluate(rows, round=_ROUND.value)
    number = run.rounds[-1] if _ROUND.value is None else _ROUND.value
    if _JSON.value:
        print(json.dumps({"run": str(run.path), "round": number} | {n: finite(value) for n, value in found.items()}))
        return 0
    count = len(next(iter((run.experiment.dataset.test if rows is None else rows).values())))
    print(f"{run.path}, round {number}, on {count:,} rows")
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:{width}}  {value:.6g}")
    return 0


def test_rows(run: "LoadedRun", pairs: Sequence[tuple[str, str]]) -> Mapping[str, np.ndarray]:
    """The test columns of a run's data with other settings; UserError where a number stands for another class, or a
    column for another feature, than in training."""
    from fedjax8.build import build_data

    config = copy.deepcopy(run.config)
    override(config, pairs)
    other, own = build_data(config, run.data_dir), run.experiment.dataset
    for what, names, trained, advice in (
        ("targets", other.class_names, own.class_names, ", by --config.data.classes where some may be missing"),
        ("features", other.feature_names, own.feature_names, ", in one order"),
    ):
        if names and trained and names != trained:
            raise UserError(
                f"the rows to evaluate on have the {what} {listed(names)}, but the model was trained on "
                f"{listed(trained)}; make them alike{advice}"
            )
    return other.test


def listed(names: Sequence[str]) -> str:
    """The first names, for a message."""
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)


def finite(value: float) -> float | None:
    """The number; None where JSON has none."""
    return value if np.isfinite(value) else None


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl's flags, those of an earlier call forgotten; `--config.` overrides are left in argv."""
    rest, pairs = split_overrides(argv)
    for name in OURS:
        flags.FLAGS[name].unparse()
    return flags.FLAGS(rest) + [f"--config.{path}={text}" for path, text in pairs]


def checked(argv: list[str]) -> list[str]:
    """A command line as it is, after its flags are parsed once for absl: `main` parses them again, whole."""
    parse_flags(argv)
    return argv


if __name__ == "__main__":
    cli.run(main, checked)
