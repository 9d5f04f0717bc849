#!/usr/bin/env python3
"""Prints the last logged values of every setting: means over seeds, as a Markdown table.

    python scripts/last_values.py RUN... --values=uplink_quantization_error,test_accuracy

Each RUN is the --workdir of a run; runs that differ in their seed alone are one row. A value that a setting never
logged is a dash.
"""

import sys

import numpy as np
from absl import app, flags

from fedjax8.errors import UserError
from fedjax8.results.runs import RunFolder, read_settings

_VALUES = flags.DEFINE_list(
    "values", ["test_accuracy"], "Keys of metrics.jsonl, each at the last round that logged it."
)


def last(run: RunFolder, name: str) -> float:
    """The last value logged under that name, NaN if there is none, or it is not finite."""
    value = run.last(name)
    return float("nan") if value is None else value


def main(argv: list[str]) -> None:
    """Prints the table of the run folders `argv[1:]`."""
    try:
        settings, warnings = read_settings(argv[1:])
    except UserError as error:
        sys.exit(f"last_values: {error}")
    print("| setting | " + " | ".join(_VALUES.value) + " |")
    print("|---" * (1 + len(_VALUES.value)) + "|")
    for setting in settings:
        means = [np.mean([last(run, name) for run in setting.runs]) for name in _VALUES.value]
        print(f"| {setting.label} | " + " | ".join(f"{m:.3g}" if np.isfinite(m) else "-" for m in means) + " |")
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    app.run(main)
