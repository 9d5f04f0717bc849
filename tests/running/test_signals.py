"""Signals that stop a run, sent to this process."""

import os
import signal

import pytest

from fedjax8.running.signals import STOPPING, stop_on_signals


def heard(number):
    os.kill(os.getpid(), number)


@pytest.fixture
def harmless():
    """Signals do nothing but are not ignored, so that the tests survive what they send."""
    got = []
    before = {
        n: signal.signal(n, lambda number, frame: got.append(number))
        for n in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT)
    }
    yield got
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_asks_to_stop_and_is_answered(harmless, capfd, number):
    with stop_on_signals() as stopped:
        assert stopped() is None
        heard(number)
        assert stopped() == number
    assert capfd.readouterr().err == STOPPING.decode() and harmless == []


def test_a_second_hangup_does_nothing_and_a_second_termination_acts_as_before(harmless):
    with stop_on_signals() as stopped:
        for _ in range(3):
            heard(signal.SIGHUP)
        assert (stopped(), harmless) == (signal.SIGHUP, [])
        heard(signal.SIGTERM)
        assert harmless == [signal.SIGTERM]
    heard(signal.SIGHUP)
    assert harmless == [signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_at_the_start_stays_ignored(harmless, number):
    """As `nohup` does with SIGHUP, and a shell with SIGINT for what it runs in the background."""
    signal.signal(number, signal.SIG_IGN)
    with stop_on_signals() as stopped:
        heard(number)
        assert stopped() is None


def test_an_answer_that_nobody_can_read_is_left_out(harmless, monkeypatch):
    def gone(descriptor, text):
        raise OSError("the terminal is gone")

    monkeypatch.setattr(os, "write", gone)
    with stop_on_signals() as stopped:
        heard(signal.SIGHUP)
        assert stopped() == signal.SIGHUP
