"""A clean stop on SIGTERM and Ctrl-C: the rounds under way are finished first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

STOPPING = b"fedjax8: stopping after the rounds under way; once more stops at once\n"
"""The answer to the first signal."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells the first SIGTERM or SIGINT received, or None.

    That one is answered on stderr; the next, of either kind, acts as it did before.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)
        os.write(2, STOPPING)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
