"""Rounds, bytes and simulated time to a target of a metric, and the gain against the first setting: table and page.

    python -m fedjax8.compare DIR... [--metric=mae] [--target=0.9] [--margin=0.01] [--smooth=N] [--on=validation]
        [--tag=A,B] [--html=FILE] [--figure=FILE] [--csv=FILE] [--latex=FILE] [--watch[=SECONDS]]

Each DIR is the --workdir of a run, or a folder of such. Runs that differ in their seed alone are one setting and one
row: mean and sample standard deviation over seeds. The first setting is the reference: each run is compared with the
reference's run of the same seed, at the worse of the two best values of the metric, or at --target for all; settings
that have no seed in common are compared by their means. The metric is the first of the runs' task, such as the test
accuracy, unless --metric names another; where neither the task nor the name says whether it is better high or low,
--direction does. A gain is given only where a setting's best value, mean over seeds, is worse than the reference's by
at most --margin (by default 0.01: one point of accuracy, or 1% of a metric that may be above 1): others are "not
reached", however few bytes they sent; --margin=1 (for errors and losses: inf) gives all. --smooth averages each value
with those before it, N in all (by default 1, and 5 once every run has 50 evaluations). With --on=validation runs made
with --config.validation are compared on their validation rows, and values on test rows are reported alone. --tag
takes only runs that have all these tags (--tag of training).

The page is comparison.html unless --html names another file; --html= writes none. It is one file with interactive
plots, and can be opened without a network; it needs plotly: pip install 'fedjax8[report]'. --watch writes it again
every so many seconds (10) until none is at work, and the page loads itself anew; runs on other hosts count as at work
until they are finished. --figure writes a picture, PNG, SVG or PDF: metric against bytes, and gain against metric, and
both in simulated time where all runs have a clock; it needs matplotlib: pip install 'fedjax8[plot]'. --csv and --latex
write the table.
"""

import importlib.util
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from absl import flags

from fedjax8 import cli
from fedjax8.directions import AUTO, CHOICES
from fedjax8.errors import UserError
from fedjax8.results.comparison import Comparison, compare_runs
from fedjax8.results.figures import check_picture_name, draw_comparison, save_picture, write_whole
from fedjax8.results.gain import MARGIN
from fedjax8.results.log import NotYet
from fedjax8.results.look import require_matplotlib
from fedjax8.results.measure import PARTS
from fedjax8.results.page import html_page, plotly_script
from fedjax8.results.report import explanation, shared_in_words, table
from fedjax8.results.tables import as_csv, as_latex
from fedjax8.streams import console_on

PAGE = "comparison.html"
WATCHED = 10.0
"""Seconds between two writings of the page with `--watch` alone."""
UNLIMITED = 2**15
"""Characters in a line wide enough for any table."""


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_string(
        "metric", None, "metric to compare, such as mae or loss; by default the first of the runs' task"
    )
    flags.DEFINE_enum("direction", AUTO, CHOICES, "whether the metric is better higher or lower; auto: by its name")
    flags.DEFINE_float("target", None, "value of the metric to compare at, such as an accuracy of 0.9")
    flags.DEFINE_float("margin", MARGIN, "largest distance from the reference's best value for a gain")
    flags.DEFINE_integer("smooth", None, "evaluations to average the metric over")
    flags.DEFINE_enum("on", "test", PARTS, "rows whose metric chooses targets and best rounds")
    flags.DEFINE_list("tag", [], "only runs that have all these tags")
    flags.DEFINE_string("html", None, f"page to write; {PAGE} by default, none if empty")
    flags.DEFINE_string("figure", None, "picture to write, a .png, .svg or .pdf file")
    flags.DEFINE_string("csv", None, "file to write the table to, for other programs")
    flags.DEFINE_string("latex", None, "file to write the table to, as a tabular with rules of booktabs")
    flags.DEFINE_float(
        "watch", None, "write page and tables again every so many seconds until no run is at work", lower_bound=0.1
    )


def with_seconds(argv: Sequence[str]) -> list[str]:
    """The command line with the usual number of seconds where `--watch` has none."""
    return [f"--watch={WATCHED:g}" if argument in ("--watch", "-watch") else argument for argument in argv]


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl's flags; `--watch` needs no value."""
    return flags.FLAGS(with_seconds(argv))


def main(argv: list[str]) -> int:
    """Compares the run folders `argv[1:]` as the flags ask; the exit status is 0."""
    args = flags.FLAGS
    if not argv[1:]:
        raise UserError("no run folder given: python -m fedjax8.compare runs/*")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    if args.figure:
        check_picture_name(args.figure)
        require_matplotlib()
    if args.html:
        plotly_script()
    if args.watch:
        watch(argv[1:], args.watch)
    found = compared(argv[1:])
    print_comparison(found, sys.stdout)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if args.html is None and importlib.util.find_spec("plotly") is None:
        print("no page of plots without plotly: pip install 'fedjax8[report]'", file=sys.stderr)
    for name in write_files(found):
        print(f"wrote {name}")
    return 0


def compared(folders: Sequence[str]) -> Comparison:
    """The comparison of the runs in folders, as the flags ask."""
    args = flags.FLAGS
    paths = [cli.path_of(path) for path in folders]
    return compare_runs(
        paths, args.target, args.smooth, args.margin, args.on, args.metric, args.direction, tags=args.tag
    )


def write_files(found: Comparison, reload: float = 0.0) -> list[str]:
    """Writes page, picture and tables as the flags ask; their names. The page of a `reload` loads itself anew."""
    args, written = flags.FLAGS, []
    page = PAGE if args.html is None else args.html
    if page and (args.html or importlib.util.find_spec("plotly")):
        write_whole(cli.path_of(page), html_page(found, reload).encode())
        written.append(page)
    if args.figure:
        save_picture(draw_comparison(found), cli.path_of(args.figure))
        written.append(args.figure)
    for name, made in ((args.csv, as_csv), (args.latex, as_latex)):
        if name:
            write_whole(cli.path_of(name), made(found).text.encode())
            written.append(name)
    return written


def watch(folders: Sequence[str], seconds: float) -> None:
    """Writes the files again and again while runs are at work; returns when all are finished or stopped."""
    while True:
        try:
            found = compared(folders)
            runs = [run for result in found.results for run in result.setting.runs]
            unfinished = [run for run in runs if not run.summary.get("finished")]
            stopped = [str(run.path) for run in unfinished if stopped_at(run.path)]
            if len(stopped) == len(unfinished):
                for path in stopped:
                    print(f"warning: {path} has stopped before its end; its command goes on with it", file=sys.stderr)
                return
            written = write_files(found, seconds)
            said = f"{len(unfinished) - len(stopped)} of {len(runs)} runs at work; "
            said += f"stopped before their end: {', '.join(stopped)}; " if stopped else ""
            said += f"wrote {', '.join(written) or 'nothing'}"
        except NotYet as error:
            if crashed := [path for path in map(cli.path_of, folders) if stopped_at(path) and not logged_at(path)]:
                raise UserError(f"{crashed[0]} stopped before its first round; see what its command said") from error
            said = str(error)
        print(f"{time.strftime('%H:%M:%S')} {said}", flush=True)
        time.sleep(seconds)


def stopped_at(run: Path) -> bool:
    """Whether the process of a run that is not finished is known to have ended: by the number in its lock file, on this
    host. A run without such a file is one that was copied, and is not known to be at work or not."""
    try:
        text = (run / ".lock").read_text(errors="replace")
    except OSError:
        return False
    found = re.fullmatch(r"process (\d+) on (.*)\n?", text)
    if found is None or found[2] != socket.gethostname():
        return False
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # such as of another user's
        return False
    return False


def logged_at(run: Path) -> bool:
    """Whether there is something in the log of a run."""
    log = run / "metrics.jsonl"
    return log.is_file() and log.stat().st_size > 0


def print_comparison(found: Comparison, stream: TextIO) -> None:
    """Prints the table: in a terminal as several if one is too wide, into a file or pipe plain and whole."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # where "±" cannot be written, "?" rather than an error
    terminal = stream.isatty()
    console = console_on(stream, **({} if terminal else {"width": UNLIMITED, "color_system": None}))
    shown = table(found)
    names, cells = shown.columns, shown.rows

    def made(columns: Sequence[int], narrow: bool) -> Table:
        drawn = Table(box=box.SIMPLE_HEAD if terminal else box.ASCII2)
        for column in columns:
            heading = names[column].replace(" ", "\n", 1) if narrow else names[column]
            drawn.add_column(heading, justify="right" if column else "left", overflow="fold")
        for label, *numbers in cells:
            row = [label.replace(", ", ",\n") if narrow else label, *numbers]
            drawn.add_row(*(Text(row[column]) for column in columns))
        return drawn

    def fits(columns: Sequence[int], narrow: bool) -> bool:
        unlimited = console.options.update(max_width=UNLIMITED)
        return Measurement.get(console, unlimited, made(columns, narrow)).maximum <= console.width

    narrow = not fits(range(len(names)), narrow=False)
    columns = [0]
    for column in range(1, len(names)):
        if len(columns) > 1 and not fits([*columns, column], narrow):
            console.print(made(columns, narrow))
            columns = [0]
        columns.append(column)
    console.print(made(columns, narrow))
    shared = shared_in_words(shown.shared)
    for sentence in [*([shared] if shared else []), *explanation(found)]:
        console.print(Text(sentence), width=min(console.width, 110))


if __name__ == "__main__":
    define_flags()
    cli.run(main, parse_flags)
