"""Console output of a run: a heading, a table row per evaluation, a progress bar on a terminal, and the result.

Without a terminal, a run that goes long without an evaluation reports its progress now and then.
"""

import datetime
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from fedjax8.directions import in_words
from fedjax8.exchange.ledger import Ledger
from fedjax8.results.durations import readable_duration
from fedjax8.results.log import number
from fedjax8.running.notebook_bar import NotebookBar, in_notebook
from fedjax8.streams import console_on

UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
COLUMNS = (
    ("round", 6),
    ("test acc", 9),
    ("test loss", 10),
    ("train loss", 11),
    ("up", 10),
    ("down", 10),
    ("s/round", 8),
)


SIMULATED = ("simulated", 11)


WORDS, WIDTH = {"peer_bytes": "peers", "edge_bytes": "edge"}, 10
"""Columns of the directions beside up and down, by their field of the log."""


def columns_for(metric: str, others: Sequence[str] = (), timed: bool = False) -> tuple[tuple[str, int], ...]:
    """Headings and widths of the table, with the metric in place of the accuracy, `others` of WORDS, and with `timed`
    the simulated time."""
    *first, last = COLUMNS
    if metric != "accuracy":
        name = in_words(f"test_{metric}")
        first[1] = name, max(11, len(name) + 2)
    return (*first, *((WORDS[name], WIDTH) for name in others), *([SIMULATED] if timed else []), last)


def readable_bytes(count: int) -> str:
    """Bytes with a decimal unit and three digits: 1234567 gives `1.23 MB`."""
    if count < 1000:
        return f"{count} B"
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {UNITS[unit]}"


LARGEST_PLAIN = 1000.0
"""Numbers from here on are shown with an exponent: a loss that explodes has 36 digits otherwise."""


def readable_number(value: float | None, digits: int = 4) -> str:
    """A number with so many decimals; with an exponent from `LARGEST_PLAIN` on; `-` for None.

    >>> readable_number(0.25), readable_number(412345.678), readable_number(1.5e36, 3), readable_number(None)
    ('0.2500', '4.12e+05', '1.50e+36', '-')
    """
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if not abs(value) >= LARGEST_PLAIN else f"{value:.2e}"


def _number(line: Mapping[str, Any], name: str, digits: int = 4) -> str:
    return readable_number(line.get(name), digits)


SILENT_SECONDS = 60.0
"""Seconds that a run without a terminal may go without a line."""
COMPILING = "compiling, the first time for these shapes ..."
COMPILING_SECONDS = 3.0
"""Seconds of one compilation after which a run without a terminal says so."""
RATE_SECONDS = 1800.0
"""Seconds of the past over which the rate is taken; rounds may last minutes."""


def readable_rate(rounds_per_second: float | None) -> str:
    """Rounds a second, or seconds a round where that is the larger number; nothing before it is known."""
    if not rounds_per_second:
        return ""
    per_second = rounds_per_second >= 1
    value = rounds_per_second if per_second else 1 / rounds_per_second
    return f"{value:.{1 if value < 100 else 0}f} {'rounds/s' if per_second else 's/round'}"


class RateColumn(ProgressColumn):
    """Column of the progress bar with the rate of rounds."""

    def render(self, task: Task) -> Text:
        """The rate in words."""
        return Text(readable_rate(task.speed), style="progress.data.speed")


class ProgressReport:
    """Progress of one run, or of several distinguished by `labels`, on a console.

    `rounds` and `done` count those of all runs; `metric` is the one that runs are judged by. A context manager, so that
    the bar is taken away when they end.
    """

    def __init__(
        self,
        rounds: int,
        done: int = 0,
        console: Console | None = None,
        silent: bool = False,
        labels: Sequence[str] = ("",),
        metric: str = "accuracy",
        clock: Callable[[], float] = time.monotonic,
    ):
        if console is None:
            console = console_on(quiet=silent, force_terminal=False if silent else None)
        self.console = console
        self._bar: Any = (
            NotebookBar()
            if in_notebook() and not silent
            else Progress(
                TextColumn("round"),
                MofNCompleteColumn(),
                BarColumn(),
                RateColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=self.console,
                transient=True,
                disable=not self.console.is_terminal,
                get_time=clock,
                speed_estimate_period=RATE_SECONDS,
            )
        )
        self._live = self.console.is_terminal or isinstance(self._bar, NotebookBar)
        self._clock, self._spoken = clock, clock()
        self._task = self._bar.add_task("rounds", total=rounds, completed=done, note="")
        self._done = done
        self._heading_due = True
        self._note = ""
        self._slow: threading.Timer | None = None
        self._said_compiling = False
        self._metric, self._columns = metric, columns_for(metric)
        self._label_width = max(map(len, labels)) + 2 if any(labels) else 0

    def __enter__(self) -> "ProgressReport":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop_waiting()
        self._bar.stop()

    def compiling(self, begins: bool) -> None:
        """Says on the bar that XLA compiles, until it ends; without a terminal once, in a line, if it takes long."""
        self._stop_waiting()
        self._bar.update(self._task, note=COMPILING if begins else self._note)
        if begins and not self._live and not self._said_compiling:
            self._slow = threading.Timer(COMPILING_SECONDS, self._say_compiling)
            self._slow.daemon = True
            self._slow.start()

    def _say_compiling(self) -> None:
        self._said_compiling = True
        self.say(COMPILING)

    def _stop_waiting(self) -> None:
        if self._slow:
            self._slow.cancel()
        self._slow = None

    def say(self, text: str) -> None:
        """One line."""
        self._spoken = self._clock()
        self.console.print(text, soft_wrap=True, markup=False)

    def round_done(self, line: Mapping[str, Any], label: str = "") -> None:
        """Moves the bar; prints a row if the round was evaluated."""
        evaluated = "test_loss" in line
        if evaluated:
            self._note = f"{in_words(self._metric)} {_number(line, f'test_{self._metric}')}"
        self._done += 1
        self._bar.update(self._task, completed=self._done, note=self._note)
        if not evaluated:
            if not self._live and self._clock() - self._spoken >= SILENT_SECONDS:
                self.say(self._how_far(line))
            return
        if self._heading_due:
            others = [name for name in WORDS if name in line]
            self._columns = columns_for(self._metric, others, "simulated_seconds" in line)
            self.say(" " * self._label_width + "".join(name.rjust(width) for name, width in self._columns))
            self._heading_due = False
        cells = (
            str(line["round"]),
            _number(line, f"test_{self._metric}"),
            _number(line, "test_loss"),
            _number(line, "train_loss"),
            readable_bytes(line["uplink_bytes"]),
            readable_bytes(line["downlink_bytes"]),
            *(readable_bytes(line[name]) for name, word in WORDS.items() if (word, WIDTH) in self._columns),
            *([readable_duration(line["simulated_seconds"])] if SIMULATED in self._columns else []),
            f"{line['round_seconds']:.{3 if line['round_seconds'] < LARGEST_PLAIN else 0}f}",
        )
        row = "".join(cell.rjust(width) for cell, (_, width) in zip(cells, self._columns, strict=True))
        self.say(label.ljust(self._label_width) + row)

    def _how_far(self, line: Mapping[str, Any]) -> str:
        """The progress in a line, as `round 37, 3.7%, train loss 0.2345, 1.6 s/round, 0:16:03 left`."""
        (task,) = self._bar.tasks
        left = task.time_remaining
        parts = [f"round {line['round']}", f"{task.percentage:.1f}%", f"train loss {_number(line, 'train_loss')}"]
        parts += [readable_rate(task.speed)] if task.speed else []
        parts += [f"{datetime.timedelta(seconds=int(left))} left"] if left is not None else []
        return ", ".join(parts)

    def finished(self, summary: Mapping[str, Any], ledger: Ledger, label: str = "") -> None:
        """Prints the result: metric, bytes and saving, and the bytes of frozen parameters, which each client gets
        once."""
        others = "".join(f"bytes {WORDS[name]:8}{count:,}\n" for name, count in ledger.others.items())
        key = f"test_{self._metric}"
        float32 = summary.get(f"float32_{key}")
        beside = "" if float32 is None else f" (float32 view {float32:.4f})"
        backbone = summary.get("backbone_bytes")
        apart = f"\nbackbone      {backbone:,} a client, once and not counted above" if backbone else ""
        prefix = f"{label}: " if label else ""
        timed = f"\n{simulated_in_words(summary)}" if "simulated_seconds" in summary else ""
        self.say(
            f"\n{prefix}{in_words(key)} {_number(summary, key)}{beside} after {summary['rounds']} rounds, "
            f"{summary['seconds']:.1f} s\n"
            f"bytes up      {ledger.uplink_bytes:,}\n"
            f"bytes down    {ledger.downlink_bytes:,}\n{others}"
            f"saving        {ledger.saving:.2f}x against float32 "
            f"({readable_bytes(ledger.total_bytes)} instead of {readable_bytes(ledger.float32_bytes)}){apart}{timed}"
        )


def simulated_in_words(summary: Mapping[str, Any]) -> str:
    """As `simulated time 3.4 h, of which clients wait 42%`."""
    waiting = number(summary.get("waiting_share"))
    beside = f", of which clients wait {100 * waiting:.0f}%" if math.isfinite(waiting) else ""
    return f"simulated time {readable_duration(summary['simulated_seconds'])}{beside}"
