"""What a person sees, on a terminal and in a pipe."""

import io

import pytest
from rich.console import Console

from fedjax8.simulation.console import ProgressReport, readable_bytes
from fedjax8.simulation.ledger import Ledger
from fedjax8.types import Channel

LEDGER = Ledger({Channel("up", "model", 40, 160): 100, Channel("down", "model", 40, 160): 100})


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (12_345, "12.3 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (2 * 10**20, "200 EB"),
    ],
)
def test_bytes_are_shown_in_decimal_units_with_three_digits(count, text):
    assert readable_bytes(count) == text


def rounds(console):
    with ProgressReport(4, console=console) as report:
        for n in range(1, 5):
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


def test_a_terminal_gets_a_progress_bar_with_the_accuracy():
    out = io.StringIO()
    rounds(Console(file=out, force_terminal=True, width=100))
    assert "accuracy 1.0000" in out.getvalue()
    assert "4/4" in out.getvalue()
