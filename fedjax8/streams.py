"""Standard output and error that cannot end a run: work goes on where they cannot be written.

A reader that goes away (`| head -1`), a full disk or a terminal that is gone make every write an `OSError`. The
results of a run are worth more than the line: the stream is pointed to the null device, stderr says so once, and the
exit status is that of the work.
"""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


class Unbroken:
    """A text stream whose writes do not fail. All else is the stream's own."""

    def __init__(self, stream: TextIO, name: str = "stdout"):
        self._stream, self._name, self._broken = stream, name, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the text, or nothing from the first failure on."""
        try:
            return len(text) if self._broken else self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: a closed file
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        """Flushes, or nothing from the first failure on."""
        try:
            if not self._broken:
                self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if isinstance(error, UnicodeError):  # the stream is whole
            raise error
        self._broken = True
        with contextlib.suppress(OSError, ValueError, io.UnsupportedOperation):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # or else Python's own flush at the end would fail again
            os.close(nowhere)
        if self._name == "stdout":
            why = getattr(error, "strerror", None) or error
            with contextlib.suppress(OSError, ValueError):
                print(f"fedjax8: stdout cannot be written ({why}); going on without it", file=sys.stderr, flush=True)


def unbroken(stream: TextIO, name: str = "stdout") -> Any:
    """The stream, made `Unbroken` unless it is so already."""
    return stream if isinstance(stream, Unbroken) else Unbroken(stream, name)


def keep_standard_streams() -> None:
    """Makes stdout and stderr `Unbroken`, writes `?` for characters that their encoding lacks, and opens the null
    device for those of the three that are closed: the next file opened would take the number, and libraries' output
    with it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115  (until the process ends)
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
        setattr(sys, name, unbroken(stream, name))


NARROWEST = 20
"""Columns that a console has at least; where there are said to be fewer (`COLUMNS=0`), it has `USUAL`."""
USUAL = 80


def console_on(stream: TextIO | None = None, **settings: Any) -> "Console":
    """A console on a stream, stdout by default. Writing there does not fail, and it has a width that can be used."""
    from rich.console import Console

    console = Console(file=unbroken(sys.stdout if stream is None else stream), highlight=False, **settings)
    if console.width < NARROWEST:
        console.width = USUAL
    return console
