"""Writers of metrics besides `metrics.jsonl`: TensorBoard, Weights & Biases, one of your own.

A writer is a file here with one factory named like the file, or `package.module:factory`. The factory imports what it
needs, and raises `UserError` with the command that installs it before anything runs. From then on a writer that fails
is reported once and left out: it never costs a round.
"""

import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedjax8.errors import UserError
from fedjax8.lookup import find


class Writer(NamedTuple):
    """Functions that write metrics to one more place. The handle that `open` returns goes to the others."""

    open: Callable[[Path, Mapping[str, Any], int], Any]
    """`(run folder, contents of config.json, rounds done) -> handle`. Lines of later rounds, written before the run was
    interrupted, come again."""
    write: Callable[[Any, Mapping[str, Any]], None]
    """`(handle, line of metrics.jsonl)`."""
    close: Callable[[Any, Mapping[str, Any]], None]
    """`(handle, summary)`; the summary is empty where the run broke off."""


def find_writers(names: Sequence[str]) -> dict[str, Writer]:
    """The writers of these names; `UserError` for one that is unknown, or whose library is missing."""
    found = {name: find(name, __name__)() for name in names}
    for name, writer in found.items():
        if not isinstance(writer, Writer):
            raise UserError(f"--writers: {name} gives a {type(writer).__name__}, but a Writer is needed")
    return found


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a metrics line, without its round."""
    return {
        name: value
        for name, value in line.items()
        if name != "round" and isinstance(value, int | float) and not isinstance(value, bool)
    }


class Writing:
    """Writers at work on one run. One that raises is left out from then on, with a line on stderr."""

    def __init__(self, writers: Mapping[str, Writer]):
        self._writers = dict(writers)
        self._handles: dict[str, Any] = {}

    def open(self, folder: Path, record: Mapping[str, Any], done: int) -> None:
        """Begins, or goes on, after `done` rounds."""
        for name, writer in self._writers.items():
            self._try(name, functools.partial(self._open, name, writer, folder, record, done))

    def write(self, line: Mapping[str, Any]) -> None:
        """One line of metrics."""
        for name, handle in list(self._handles.items()):
            self._try(name, functools.partial(self._writers[name].write, handle, line))

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """Ends; a second call does nothing."""
        for name, handle in list(self._handles.items()):
            self._try(name, functools.partial(self._writers[name].close, handle, summary or {}))
        self._handles.clear()

    def _open(self, name: str, writer: Writer, folder: Path, record: Mapping[str, Any], done: int) -> None:
        self._handles[name] = writer.open(folder, record, done)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # whatever a library raises, the run goes on
            self._handles.pop(name, None)
            line = " ".join(str(error).split())[:200]
            print(f"warning: {name} failed and is left out: {type(error).__name__}: {line}", file=sys.stderr)
