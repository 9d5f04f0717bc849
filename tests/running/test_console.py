"""What a person sees, on a terminal and in a pipe."""

import io
import math
import re

import pytest
from rich.console import Console

from fedjax8.exchange.ledger import Ledger
from fedjax8.running.console import ProgressReport, readable_bytes, readable_number, readable_rate
from fedjax8.types import Channel

SECOND = "round 3, 75.0%, train loss 1.0000, 61.0 s/round, 0:01:01 left"
LEDGER = Ledger({Channel("up", "model", 40, 160): 100, Channel("down", "model", 40, 160): 100})


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (9_610_000, "9.61 MB"),
        (9_994_999, "9.99 MB"),
        (9_995_000, "10.0 MB"),
        (99_949_999, "99.9 MB"),
        (99_950_000, "100 MB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2 * 10**20, "200 EB"),
    ],
)
def test_bytes_are_shown_in_decimal_units_with_three_digits(count, text):
    assert readable_bytes(count) == text


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def rounds(console, seconds=0.0):
    clock = Clock()
    with ProgressReport(4, console=console, clock=clock) as report:
        for n in range(1, 5):
            clock.now += seconds
            line = {"round": n, "uplink_bytes": 1000 * n, "downlink_bytes": 10, "round_seconds": 0.5, "train_loss": 1.0}
            report.round_done(line | ({"test_accuracy": 0.25 * n, "test_loss": 0.1} if n % 2 == 0 else {}))
        summary = {"rounds": 4, "seconds": 2.0, "test_accuracy": 1.0, "float32_test_accuracy": 0.5}
        report.finished(summary, LEDGER)


def test_a_pipe_gets_plain_aligned_rows_of_evaluated_rounds():
    out = io.StringIO()
    rounds(Console(file=out, width=80))
    text = out.getvalue().splitlines()
    assert text[0].split() == ["round", "test", "acc", "test", "loss", "train", "loss", "up", "down", "s/round"]
    assert text[1].split() == ["2", "0.5000", "0.1000", "1.0000", "2.00", "kB", "10", "B", "0.500"]
    assert len(text[0]) == len(text[1]) == len(text[2])
    assert "\x1b" not in out.getvalue()
    assert "saving        4.00x against float32 (8.00 kB instead of 32.0 kB)" in text


def test_a_run_with_a_clock_has_a_column_and_a_sentence_of_simulated_time():
    out = io.StringIO()
    line = {"round": 2, "uplink_bytes": 10, "downlink_bytes": 10, "round_seconds": 0.5, "train_loss": 3.0}
    done = {"rounds": 2, "seconds": 1.0, "test_accuracy": 0.5}
    for time, share in ((None, None), (204.0, 0.42)):
        more = {} if time is None else {"simulated_seconds": time}
        with ProgressReport(4, console=Console(file=out, width=100)) as report:
            report.round_done(line | more | {"test_accuracy": 0.5, "test_loss": 1.0})
            report.finished(done | more | ({"waiting_share": share} if share else {}), LEDGER)
    lines = out.getvalue().splitlines()
    plain, timed = (lines[i : i + len(lines) // 2 + i] for i in (0, len(lines) // 2))
    assert "simulated" not in " ".join(plain[:6])
    assert timed[0].split()[-2:] == ["simulated", "s/round"] and timed[1].split()[-3:] == ["3.4", "min", "0.500"]
    assert len(timed[0]) == len(timed[1])
    assert lines[-1] == "simulated time 3.4 min, of which clients wait 42%"


def test_a_terminal_gets_a_progress_bar_with_the_accuracy():
    out = io.StringIO()
    rounds(Console(file=out, force_terminal=True, width=100), seconds=2.0)
    assert "accuracy 1.0000" in out.getvalue()
    assert "4/4" in out.getvalue()


def test_the_bar_tells_the_rate_and_the_time_left():
    """A round every 2 s: known after the second of the four, when two are left."""
    out, clock = io.StringIO(), Clock()
    with ProgressReport(4, console=Console(file=out, force_terminal=True, width=100), clock=clock) as report:
        for n in (1, 2):
            clock.now += 2.0
            report.round_done({"round": n, "uplink_bytes": 0, "downlink_bytes": 0})
        report._bar.refresh()
    assert "2.0 s/round left 0:00:04" in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())


def test_a_run_without_a_terminal_gives_a_sign_of_life_a_minute_and_a_terminal_needs_none():
    for terminal in (False, True):
        out = io.StringIO()
        rounds(Console(file=out, force_terminal=terminal, width=100), seconds=61.0)
        told = [line for line in out.getvalue().splitlines() if "train loss 1.0000" in line]
        # rounds 2 and 4 have rows of the table; after round 1 no rate is known yet
        assert told == ([] if terminal else ["round 1, 25.0%, train loss 1.0000", SECOND])
    out = io.StringIO()
    rounds(Console(file=out, width=100), seconds=25.0)
    assert "train loss 1.0000" not in out.getvalue()


@pytest.mark.parametrize(
    ("rate", "text"), [(None, ""), (0.0, ""), (250.0, "250 rounds/s"), (1.0, "1.0 rounds/s"), (0.1, "10.0 s/round")]
)
def test_a_rate_is_the_larger_of_rounds_a_second_and_seconds_a_round(rate, text):
    assert readable_rate(rate) == text


@pytest.mark.parametrize("loss", [999.99999, 1000.0, 412345.678, 1.5e36, -3e38, math.nan, math.inf])
def test_a_loss_of_any_size_keeps_the_columns(loss):
    out = io.StringIO()
    line = {"round": 7, "uplink_bytes": 26_100, "downlink_bytes": 26_100, "round_seconds": 12_345.678}
    with ProgressReport(4, console=Console(file=out, width=80)) as report:
        report.round_done(line | {"test_accuracy": 0.25, "test_loss": loss, "train_loss": loss})
    heading, row = out.getvalue().splitlines()
    assert len(row) == len(heading) and len(row.split()) == 9  # two of them are the units of bytes
    assert row.split()[2] == row.split()[3]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.12345, "0.1235"),
        (999.4, "999.4000"),
        (412345.678, "4.12e+05"),
        (-1.5e36, "-1.50e+36"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers_from_a_thousand_on_have_an_exponent(value, text):
    assert readable_number(value) == text


def test_a_regression_is_told_in_its_own_metric():
    out = io.StringIO()
    line = {"round": 2, "uplink_bytes": 10, "downlink_bytes": 10, "round_seconds": 0.5, "train_loss": 3.0}
    with ProgressReport(4, console=Console(file=out, width=100), metric="calibration_error") as report:
        report.round_done(line | {"test_calibration_error": 0.125, "test_loss": 2.0})
        report.finished({"rounds": 2, "seconds": 1.0, "test_calibration_error": 0.125}, LEDGER)
    heading, row, *end = out.getvalue().splitlines()
    assert heading.split()[:6] == ["round", "test", "calibration", "error", "test", "loss"]
    assert row.split()[:3] == ["2", "0.1250", "2.0000"] and len(row) == len(heading)
    assert end[1].startswith("test calibration error 0.1250 after 2 rounds")
    bar = io.StringIO()
    with ProgressReport(4, console=Console(file=bar, force_terminal=True, width=100), metric="mae") as report:
        report.round_done(line | {"test_mae": 12.5, "test_loss": 2.0})
        report._bar.refresh()
    assert "MAE 12.5000" in bar.getvalue()


def test_without_a_terminal_a_long_compilation_is_said_once(monkeypatch):
    monkeypatch.setattr("fedjax8.running.console.COMPILING_SECONDS", 0.0)
    out = io.StringIO()
    with ProgressReport(10, console=Console(file=out)) as report:
        for _ in range(2):
            report.compiling(True)
            if report._slow:
                report._slow.join()
            report.compiling(False)
    assert out.getvalue().count("compiling, the first time for these shapes") == 1


def test_a_short_compilation_is_not_said():
    out = io.StringIO()
    with ProgressReport(10, console=Console(file=out)) as report:
        report.compiling(True)
        report.compiling(False)
    assert out.getvalue() == ""


def test_on_a_terminal_the_bar_says_that_xla_compiles():
    console = Console(file=io.StringIO(), force_terminal=True)
    with ProgressReport(10, console=console) as report:
        note = lambda: report._bar.tasks[0].fields["note"]
        report.compiling(True)
        assert note() == "compiling, the first time for these shapes ..."
        report.compiling(False)
        assert note() == ""
