"""A clean stop on SIGTERM, Ctrl-C and a terminal that goes away: the rounds under way are finished first."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

STOPPING = b"fedjax8: stopping after the rounds under way; once more stops at once\n"
"""The answer to the first signal."""
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Yields a function that gives the first SIGTERM, SIGINT or SIGHUP received, or None.

    That one is answered on stderr; the next SIGTERM or SIGINT acts as it did before. Another SIGHUP does nothing: a
    terminal that goes away sends several. A signal that was ignored at the start stays ignored, as `nohup` asks.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """
    received: list[int] = []

    def note(number, frame):
        received.append(number)
        for each, handler in before.items():
            signal.signal(each, signal.SIG_IGN if each == signal.SIGHUP else handler)
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, STOPPING)

    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in STOPS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        before = {number: signal.signal(number, note) for number in heard}
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
