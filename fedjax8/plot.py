"""Draws a metric against bytes for one or more runs.

    python -m fedjax8.plot DIR... --out=FILE.png [--x=bytes|rounds|seconds|simulated_seconds] [--y=METRIC]
        [--smooth=N] [--logx]

The picture is PNG, SVG or PDF, by the ending of --out.

Each DIR is the --workdir of a run. The metric is the first of the runs' task, on test rows, unless --y names another.
Runs that differ in their seed alone are one curve: the mean over seeds, with a band of one standard deviation. Needs
matplotlib: pip install 'fedjax8[plot]'.

In a notebook:

    from fedjax8.plot import plot_runs, use_style
    plot_runs(["runs/fp8", "runs/float32"]).figure
    use_style()                                     your own figures look like it
"""

import logging
import sys

from absl import flags

from fedjax8 import cli
from fedjax8.errors import UserError
from fedjax8.results.figures import AXES, check_picture_name, draw, plot_runs, save_picture
from fedjax8.results.look import COLORS, use_style
from fedjax8.results.runs import read_settings

__all__ = ["COLORS", "main", "plot_runs", "use_style"]


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_string("out", None, "picture to write, a .png, .svg or .pdf file")
    flags.DEFINE_enum("x", "bytes", list(AXES), "horizontal axis; bytes are up and down")
    flags.DEFINE_string("y", None, "vertical axis: a key of metrics.jsonl; by default the runs' first metric")
    flags.DEFINE_integer("smooth", 1, "evaluations to average over", lower_bound=1)
    flags.DEFINE_bool(
        "logx", None, "logarithmic horizontal axis; by default where bytes or simulated seconds differ much"
    )


def main(argv: list[str]) -> int:
    """Writes the picture that the flags ask for, of the run folders `argv[1:]`; the exit status is 0."""
    args = flags.FLAGS
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    if not argv[1:]:
        raise UserError("no run folder given: python -m fedjax8.plot runs/* --out=runs.png")
    if not args.out:
        raise UserError("no picture named: add --out=FILE.png")
    check_picture_name(args.out)
    settings, warnings = read_settings([cli.path_of(path) for path in argv[1:]])
    save_picture(draw(settings, args.x, y=args.y, smooth=args.smooth, logx=args.logx), cli.path_of(args.out))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    define_flags()
    cli.run(main)
