"""Bytes and rounds to a target accuracy, and the gain against the first run given, as a table and a page of plots.

    python -m fedjax8.compare DIR... [--target=0.9] [--smooth=N] [--html=FILE] [--png=FILE]

Each DIR is the --workdir of a run. Runs that differ in their seed alone are one row: mean and standard deviation over
seeds. Without --target, the lowest of the runs' best test accuracies is taken, which every run reaches. --smooth averages
each test accuracy with those before it, N in all (by default 1, and 5 once every run has 50 evaluations).

The page is comparison.html unless --html names another file; --html= writes none. It can be opened without a network.
Plots need matplotlib: pip install 'fedjax8[plot]'.
"""

import html
import importlib.util
import math
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from absl import flags

from fedjax8.errors import UserError
from fedjax8.simulation.comparison import Comparison, Result, Statistic, compare_runs
from fedjax8.simulation.figures import draw, inline_svg, require_matplotlib, save_png, write_whole

PAGE = "comparison.html"
TO_TARGET = ("setting", "seeds", "rounds to target", "bytes to target", "gain", "best accuracy", "final accuracy")
IN_ALL = ("rounds", "bytes up", "bytes down", "saving", "seconds")
PLOTS = (
    ("accuracy-bytes", "bytes", "test_accuracy", "Test accuracy against bytes sent"),
    ("accuracy-rounds", "rounds", "test_accuracy", "Test accuracy against rounds"),
    ("loss-rounds", "rounds", "test_loss", "Test loss against rounds"),
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th { font-weight: 600; border-bottom-color: #888 } th:first-child, td:first-child { text-align: left }
p.note { color: #555; font-size: .9rem; max-width: 46rem } ul.warnings { color: #8a4b00; font-size: .9rem }
figure { margin: 1rem 0 } figcaption { font-weight: 600; font-size: .95rem } svg { max-width: 100%; height: auto }
"""


def define_flags() -> None:
    """Registers the flags; not done on import, since other command lines have flags of the same names."""
    flags.DEFINE_float("target", None, "test accuracy to reach, above 0 and up to 1")
    flags.DEFINE_integer("smooth", None, "evaluations to average the test accuracy over")
    flags.DEFINE_string("html", None, f"page to write; {PAGE} by default, none if empty")
    flags.DEFINE_string("png", None, "picture of accuracy against bytes to write")


def main(argv: list[str]) -> int:
    """Compares the run folders `argv[1:]` as the flags ask; the exit status is 0."""
    args = flags.FLAGS
    if not argv[1:]:
        raise UserError("no run folder given: python -m fedjax8.compare runs/*")
    if args.html or args.png:
        require_matplotlib()
    found = compare_runs(argv[1:], args.target, args.smooth)
    print_comparison(found, sys.stdout)
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    page = PAGE if args.html is None else args.html
    if args.html is None and importlib.util.find_spec("matplotlib") is None:
        print("no page of plots without matplotlib: pip install 'fedjax8[plot]'", file=sys.stderr)
    elif page:
        write_whole(page, html_page(found).encode())
        print(f"wrote {page}")
    if args.png:
        settings = [r.setting for r in found.results]
        save_png(draw(settings, smooth=found.smooth, target=found.target), args.png)
        print(f"wrote {args.png}")
    return 0


# ---- text


def rows(found: Comparison) -> list[list[str]]:
    """The table's cells: one row per setting, the columns of `TO_TARGET` and then `IN_ALL`."""
    return [_row(result) for result in found.results]


def _row(result: Result) -> list[str]:
    seeds = len(result.setting.runs)
    part = f" ({result.reached} of {seeds})" if 0 < result.reached < seeds else ""
    return [
        result.setting.label,
        str(seeds),
        _plain(result.rounds_to_target, 0) + part if result.reached else "not reached",
        _bytes(result.bytes_to_target) if result.reached else "not reached",
        "-" if result.gain is None else f"{result.gain:.2f}x",
        _plain(result.best_accuracy, 4),
        _plain(result.final_accuracy, 4),
        _plain(result.rounds, 0),
        _bytes(result.uplink_bytes),
        _bytes(result.downlink_bytes),
        "-" if result.saving is None else f"{result.saving.mean:.2f}x",
        _plain(result.seconds, 1),
    ]


def _plain(value: Statistic | None, digits: int) -> str:
    if value is None:
        return "-"
    if math.isnan(value.spread):
        return f"{value.mean:.{digits}f}"
    digits = max(digits, 1)
    return f"{value.mean:.{digits}f} ± {value.spread:.{digits}f}"


def _bytes(value: Statistic | None) -> str:
    """Three significant digits in the largest decimal unit that leaves at least 1."""
    if value is None:
        return "-"
    power = 0
    while power < 5 and value.mean >= 999.5 * 1000**power:
        power += 1
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    mean = value.mean / 1000**power
    digits = 0 if power == 0 else max(0, 2 - math.floor(math.log10(mean) + 0.002))
    spread = "" if math.isnan(value.spread) else f" ± {value.spread / 1000**power:.{digits}f}"
    return f"{mean:.{digits}f}{spread} {unit}"


def explanation(found: Comparison) -> list[str]:
    """Sentences under the table: the target, how it was chosen, and what the columns mean."""
    chosen = (
        "as given"
        if found.target_given
        else "the lowest of the runs' best test accuracies, so that every run reaches it (choose with --target)"
    )
    smoothed = f" Accuracies are means of {found.smooth} evaluations." if found.smooth > 1 else ""
    spread = " ± is the standard deviation over seeds." if any(len(r.setting.runs) > 1 for r in found.results) else ""
    return [
        f"Target: test accuracy {found.target:.4g}, {chosen}.",
        "To target: first evaluated round that reaches it, and the bytes of all clients up and down by then. "
        f"Gain: bytes to target of {found.results[0].setting.label} over those of the setting. Saving: bytes of the "
        f"same exchanges in float32 over the bytes sent.{smoothed}{spread}",
    ]


def print_comparison(found: Comparison, stream: TextIO) -> None:
    """Prints the table, one that fits a terminal's width or, into a file or pipe, a plain one of full width."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # a terminal without "±" shows "?" rather than failing
    terminal = stream.isatty()
    console = Console(file=stream, highlight=False) if terminal else Console(file=stream, width=2**15, color_system=None)
    cells = rows(found)

    def table(columns: Sequence[int]) -> Table:
        made = Table(box=box.SIMPLE_HEAD if terminal else box.ASCII2)
        for column in columns:
            left = column == 0
            made.add_column((TO_TARGET + IN_ALL)[column], justify="left" if left else "right", overflow="fold")
        for row in cells:
            made.add_row(*(Text(row[column]) for column in columns))
        return made

    split = len(TO_TARGET)
    everything = range(len(TO_TARGET + IN_ALL))
    whole = table(everything)
    fits = Measurement.get(console, console.options, whole).maximum <= console.width
    for shown in [whole] if fits else [table(everything[:split]), table([0, *everything[split:]])]:
        console.print(shown)
    for sentence in explanation(found):
        console.print(Text(sentence))


# ---- page


def html_page(found: Comparison) -> str:
    """One HTML page with the table, the plots and the configs; it fetches nothing.

    Raises `UserError` if matplotlib is missing.
    """
    settings = [result.setting for result in found.results]
    fields = list(settings[0].fields)
    figures = []
    for name, x, y, title in PLOTS:
        try:
            ax = draw(settings, x, y=y, smooth=found.smooth, target=found.target if y == "test_accuracy" else None)
        except UserError:
            require_matplotlib()
            continue  # that metric was not logged
        figures.append(f"<figure><figcaption>{_text(title)}</figcaption>{inline_svg(ax, name)}</figure>")
    differences = _table(["setting", *fields], [[s.label, *s.fields.values()] for s in settings])
    runs = _table(
        ["setting", "seed", "rounds", "finished", "folder"],
        [
            [s.label, r.seed, r.rounds[-1], "yes" if r.summary.get("finished") else "no", r.path]
            for s in settings
            for r in s.runs
        ],
    )
    warnings = "".join(f"<li>{_text(w)}</li>" for w in found.warnings)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>fedjax8: comparison of runs</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            "<h1>Comparison of runs</h1>",
            _table(TO_TARGET + IN_ALL, rows(found)),
            *(f'<p class="note">{_text(sentence)}</p>' for sentence in explanation(found)),
            f'<ul class="warnings">{warnings}</ul>' if warnings else "",
            *figures,
            f"<h2>What the settings differ in</h2>\n{differences}" if fields else "",
            f"<h2>Runs</h2>\n{runs}\n</body>\n</html>\n",
        ]
    )


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in body)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>\n</table></div>'


if __name__ == "__main__":
    from fedjax8 import cli

    define_flags()
    cli.run(main)
