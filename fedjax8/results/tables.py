"""The table of a comparison as CSV, for other programs, and as LaTeX, for a paper.

CSV has a column for each config field that differs (`config.rounds` and the like where another column has its name),
numbers in full and in the units of the log (bytes, seconds, shares from 0 to 1), and means and standard deviations
apart. LaTeX has the cells that people see, needs the package
`booktabs`, and leaves out what is the same for all.
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fedjax8.results.comparison import Comparison, Result
from fedjax8.results.curves import Statistic
from fedjax8.results.log import OTHERS
from fedjax8.results.report import FIELDS, columns, shared_in_words, table
from fedjax8.results.runs import Setting

PRINTED = (
    "seeds",
    "target",
    "rounds to target",
    "bytes to target",
    "gain in bytes",
    "time to target",
    "gain in time",
    "best",
    "final",
    "waiting",
)
"""Beginnings of the columns in LaTeX: all do not fit on a page."""


class Lines(NamedTuple):
    """A file whose lines in the middle are of one setting each."""

    head: str
    of_settings: tuple[str, ...]
    foot: str = ""

    @property
    def text(self) -> str:
        """The whole file."""
        return self.head + "".join(self.of_settings) + self.foot


def as_csv(found: Comparison) -> Lines:
    """The table as CSV: a heading, and a line for each setting."""
    fields = list(found.results[0].setting.fields)
    named = _named([result.setting for result in found.results])
    numbers = [column for name, _ in _numbers(found, found.results[0]) for column in (name, f"{name}_std")]
    others = {"setting", *named, "seeds", *numbers}
    heads = [f"config.{field}" if field in others else field for field in fields]
    names = ["setting", *named, *heads, "seeds", *numbers]
    lines = [_csv_line(names)]
    for result in found.results:
        labels = [_label(result.setting, name) for name in named]
        cells = [result.setting.label, *labels, *result.setting.fields.values(), str(len(result.setting.runs))]
        for _, value in _numbers(found, result):
            cells += _pair(value)
        lines.append(_csv_line(cells))
    return Lines(lines[0], tuple(lines[1:]))


def as_latex(found: Comparison) -> Lines:
    r"""The table as a `tabular` with rules of `booktabs`, a line for each setting.

    Columns are the config fields that differ, up to `FIELDS`, or else the settings' labels, and those of `PRINTED` in
    which settings differ; comments say what is the same for all.
    """
    shown, every = table(found), columns(found)
    chosen = [i for i, c in enumerate(shown.kept) if c > 0 and every[c].startswith(PRINTED)]
    settings = [result.setting for result in found.results]
    fields = [field for field in settings[0].fields if len(settings[0].fields) <= FIELDS]
    named = any(_label(setting, "name") for setting in settings) or not fields
    heading = [*(["setting"] if named else []), *fields, *(shown.columns[i] for i in chosen)]
    heads = [[s.label] if named else [] for s in settings]
    body = [
        [*head, *(setting.fields[field] for field in fields), *(row[i] for i in chosen)]
        for head, setting, row in zip(heads, settings, shown.rows, strict=True)
    ]
    left = len(heading) - len(chosen)
    said = shared_in_words([pair for pair in shown.shared if pair[0].startswith(PRINTED)])
    comments = ["Needs \\usepackage{booktabs}.", f"Reference: {settings[0].label}."] + ([said] if said else [])
    if any(len(s.runs) > 1 for s in settings):
        comments.append("Mean and sample standard deviation over seeds.")
    head = "".join(f"% {' '.join(comment.split())}\n" for comment in comments)
    head += f"\\begin{{tabular}}{{{'l' * left}{'r' * len(chosen)}}}\n\\toprule\n{_latex_line(heading)}\\midrule\n"
    return Lines(head, tuple(map(_latex_line, body)), "\\bottomrule\n\\end{tabular}\n")


def _numbers(found: Comparison, result: Result) -> Iterator[tuple[str, Statistic | None]]:
    """Names and values of the columns of numbers."""
    metric, gain = found.measure.metric, result.gain
    yield f"target_{metric}", gain.target
    yield "rounds_to_target", gain.rounds
    yield "reference_rounds", gain.reference_rounds
    yield "gain_in_rounds", gain.in_rounds
    yield "bytes_to_target", gain.num_bytes
    yield "reference_bytes", gain.reference_bytes
    yield "gain_in_bytes", gain.in_bytes
    if found.timed:
        yield "simulated_seconds_to_target", gain.seconds
        yield "reference_simulated_seconds", gain.reference_seconds
        yield "gain_in_simulated_seconds", gain.in_seconds
    yield f"best_{metric}", result.best
    yield f"final_{metric}", result.final
    yield "rounds", result.rounds
    yield "uplink_bytes", result.uplink_bytes
    yield "downlink_bytes", result.downlink_bytes
    for way in OTHERS:
        if any(way in one.other_bytes for one in found.results):
            yield way, result.other_bytes.get(way)
    yield "saving", result.saving
    if found.clocks:
        yield "simulated_seconds", result.simulated
        yield "waiting_share", result.waiting
        yield "peak_rate", result.peak_rate
        yield "wasted_bytes", result.wasted_bytes
    yield "seconds", result.seconds
    yield "seconds_of_training", result.training
    yield "seconds_of_compiling", result.compiling


def _named(settings: Sequence[Setting]) -> list[str]:
    """The labels that some setting has: `name`, `tags`, `note`."""
    return [name for name in ("name", "tags", "note") if any(_label(setting, name) for setting in settings)]


def _label(setting: Setting, name: str) -> str:
    """A label of the setting's runs; those of several, where they differ, with semicolons."""
    found = dict.fromkeys(
        text
        for run in setting.runs
        for text in (run.labels.tags if name == "tags" else [getattr(run.labels, name)])
        if text
    )
    return "; ".join(found)


def _pair(value: Statistic | None) -> list[str]:
    """Mean and standard deviation in full; empty where there is none."""
    if value is None:
        return ["", ""]
    return ["" if math.isnan(v) else str(int(v)) if v.is_integer() and abs(v) < 2**53 else repr(v) for v in value[:2]]


def _csv_line(cells: Sequence[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(cells)
    return out.getvalue()


def _latex_line(cells: Sequence[str]) -> str:
    return " & ".join(map(latex_text, cells)) + " \\\\\n"


ESCAPES = {
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "±": "$\\pm$",
    "<": "$<$",
    ">": "$>$",
} | {letter: f"\\{letter}" for letter in "&%$#_{}"}


def latex_text(text: str) -> str:
    r"""Text that LaTeX sets as it is; a number's `x`, for times, as the sign.

    >>> latex_text("3.52 ± 0.73x"), latex_text("a_b & 50%")
    ('3.52 $\\pm$ 0.73$\\times$', 'a\\_b \\& 50\\%')
    """
    times = re.fullmatch(r"([\d.]+(?: ± [\d.]+)?)x", text)
    escaped = "".join(ESCAPES.get(letter, letter) for letter in (times[1] if times else text))
    return escaped + ("$\\times$" if times else "")
