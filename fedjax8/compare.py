"""Rounds and bytes to a target accuracy, and the gain against the first setting, as a table and a page of plots.

    python -m fedjax8.compare DIR... [--target=0.9] [--margin=0.01] [--smooth=N] [--on=validation]
        [--html=FILE] [--png=FILE]

Each DIR is the --workdir of a run. Runs that differ in their seed alone are one setting and one row: mean and
sample standard deviation over seeds. The first setting is the reference: each run is compared with the
reference's run of the same seed, at the lower of the two best test accuracies, or at --target for all; settings
that have no seed in common are compared by their means. A gain is given only where a setting's best accuracy, mean
over seeds, is at most --margin (by default one point, 0.01) below the reference's: others are "not reached", however
few bytes they sent; --margin=1 gives all. --smooth averages each test accuracy with those before
it, N in all (by default 1, and 5 once every run has 50 evaluations). With --on=validation runs made with
--config.validation are chosen and compared by their validation accuracy, and test accuracies are reported alone.

The page is comparison.html unless --html names another file; --html= writes none. It is one file with interactive
plots, and can be opened without a network; it needs plotly: pip install 'fedjax8[report]'. --png writes a picture:
accuracy against bytes, and gain against accuracy; it needs matplotlib: pip install 'fedjax8[plot]'.
"""

import importlib.util
import logging
import sys
from collections.abc import Sequence
from typing import TextIO

from absl import flags

from fedjax8 import cli
from fedjax8.errors import UserError
from fedjax8.results.comparison import PARTS, Comparison, compare_runs
from fedjax8.results.figures import check_png_name, draw_comparison, require_matplotlib, save_png, write_whole
from fedjax8.results.gain import MARGIN
from fedjax8.results.page import html_page, plotly_script
from fedjax8.results.report import COLUMNS, explanation, rows
from fedjax8.streams import console_on

PAGE = "comparison.html"
UNLIMITED = 2**15
"""Characters in a line wide enough for any table."""


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_float("target", None, "test accuracy to compare at, above 0 and up to 1")
    flags.DEFINE_float("margin", MARGIN, "largest distance below the reference's best accuracy for a gain, 0 to 1")
    flags.DEFINE_integer("smooth", None, "evaluations to average the test accuracy over")
    flags.DEFINE_enum("on", "test", PARTS, "rows whose accuracy chooses targets and best rounds")
    flags.DEFINE_string("html", None, f"page to write; {PAGE} by default, none if empty")
    flags.DEFINE_string("png", None, "picture to write: accuracy against bytes, and gain against accuracy")


def main(argv: list[str]) -> int:
    """Compares the run folders `argv[1:]` as the flags ask; the exit status is 0."""
    args = flags.FLAGS
    if not argv[1:]:
        raise UserError("no run folder given: python -m fedjax8.compare runs/*")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    if args.png:
        check_png_name(args.png)
        require_matplotlib()
    if args.html:
        plotly_script()
    found = compare_runs([cli.path_of(path) for path in argv[1:]], args.target, args.smooth, args.margin, args.on)
    print_comparison(found, sys.stdout)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    page = PAGE if args.html is None else args.html and cli.path_of(args.html)
    if args.html is None and importlib.util.find_spec("plotly") is None:
        print("no page of plots without plotly: pip install 'fedjax8[report]'", file=sys.stderr)
    elif page:
        write_whole(page, html_page(found).encode())
        print(f"wrote {page}")
    if args.png:
        save_png(draw_comparison(found), cli.path_of(args.png))
        print(f"wrote {args.png}")
    return 0


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
    cells = rows(found)

    def table(columns: Sequence[int], narrow: bool) -> Table:
        made = Table(box=box.SIMPLE_HEAD if terminal else box.ASCII2)
        for column in columns:
            heading = COLUMNS[column].replace(" ", "\n", 1) if narrow else COLUMNS[column]
            made.add_column(heading, justify="right" if column else "left", overflow="fold")
        for label, *numbers in cells:
            row = [label.replace(", ", ",\n") if narrow else label, *numbers]
            made.add_row(*(Text(row[column]) for column in columns))
        return made

    def fits(columns: Sequence[int], narrow: bool) -> bool:
        unlimited = console.options.update(max_width=UNLIMITED)
        return Measurement.get(console, unlimited, table(columns, narrow)).maximum <= console.width

    narrow = not fits(range(len(COLUMNS)), narrow=False)
    columns = [0]
    for column in range(1, len(COLUMNS)):
        if len(columns) > 1 and not fits([*columns, column], narrow):
            console.print(table(columns, narrow))
            columns = [0]
        columns.append(column)
    console.print(table(columns, narrow))
    for sentence in explanation(found):
        console.print(Text(sentence), width=min(console.width, 110))


if __name__ == "__main__":
    define_flags()
    cli.run(main)
