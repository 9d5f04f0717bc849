"""The files of a run: `metrics.jsonl`, `summary.json`, a lock (`config.json`: `identity.py`). Every file is whole or
absent.

Metrics are written before the checkpoint of the same round, and are on disk before it, so that on resuming everything
up to the checkpoint is there and later lines are cut off and written again, also after a power cut. Where lines were
damaged or lost in another way, the run goes on and says which.
"""

import contextlib
import fcntl
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fedjax8.durable import make_folder, remove, replace_file, sync_folder
from fedjax8.errors import UserError
from fedjax8.given import parse

CONFIG, METRICS, SUMMARY, LOCK = "config.json", "metrics.jsonl", "summary.json", ".lock"
CLIENT_STATES = "client_states"
UNREADABLE_METRICS = "unreadable-metrics.jsonl"


class MetricLines(NamedTuple):
    """Lines of `metrics.jsonl` up to a checkpoint, and their gaps."""

    lines: list[dict[str, Any]]
    """In order of rounds, each round at most once."""
    missing: list[int]
    """Rounds without a line."""
    damaged: bool
    """Whether something else than lines lies before the last of them."""


def client_states_folder(directory: Path, process: int) -> Path:
    """The folder of a process for the states of all clients, if they are kept on disk."""
    return directory / (f"{CLIENT_STATES}-{process}" if process else CLIENT_STATES)


def json_ready(value: Any) -> Any:
    """`value` with numbers that JSON lacks (NaN, infinities) as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON atomically: the file is the old one or the whole new one."""
    _replace(path, json.dumps(json_ready(value), indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    with _writing(path):
        replace_file(path, text.encode())


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"--workdir: cannot write {path}: {error.strerror}; make room there, or see to its permissions, and the "
            "same command goes on from the last checkpoint"
        ) from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes the directory and holds it for this process; UserError if that cannot be, or another run holds it."""
    try:
        make_folder(directory)
        handle = (directory / LOCK).open("a+")
    except OSError as error:
        raise UserError(f"--workdir: cannot write in {directory}: {error.strerror}; choose another") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            who = handle.read().strip() or "a process"
            raise UserError(
                f"--workdir: another run is working in {directory}: {who}; wait for it or choose another directory"
            ) from error
        except OSError as error:
            raise UserError(
                f"--workdir: {directory} cannot be locked: {error.strerror}; choose one on another file system"
            ) from error
        with _writing(directory / LOCK):
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            handle.flush()
        yield


def read_metrics(directory: Path, last_round: int) -> MetricLines:
    """Lines of rounds 1 to `last_round`, as far as they can be read; of two of one round, the later."""
    try:
        texts = (directory / METRICS).read_bytes().split(b"\n")
    except (FileNotFoundError, IsADirectoryError):
        texts = []
    except OSError as error:
        raise UserError(f"--workdir: cannot read {directory / METRICS}: {error.strerror}") from error
    found: dict[int, dict[str, Any]] = {}
    damaged = unread = False
    for text in filter(bytes.strip, texts):
        line = _line(text)
        if line is None or not 1 <= line["round"] <= last_round:
            unread |= line is None
            continue
        damaged |= unread or line["round"] in found
        found[line["round"]] = line
    missing = [number for number in range(1, last_round + 1) if number not in found]
    damaged |= bool(missing) and unread
    return MetricLines([found[number] for number in sorted(found)], missing, damaged or (directory / METRICS).is_dir())


def _line(text: bytes) -> dict[str, Any] | None:
    """A line of metrics; None for a damaged one."""
    line = parse(text.decode("utf-8", "replace"))
    return line if isinstance(line, dict) and type(line.get("round")) is int else None


def set_metrics_aside(directory: Path) -> Path:
    """The new place of `metrics.jsonl`, or of anything in its place, moved out of the way."""
    place = directory / UNREADABLE_METRICS
    with _writing(place):
        remove(place)
        os.replace(directory / METRICS, place)
        sync_folder(directory)
    return place


def ranges(numbers: list[int]) -> str:
    """`1-3, 7`: ascending whole numbers, those that follow each other as one range."""
    spans: list[list[int]] = []
    for value in numbers:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    shown = [f"{first}-{last}" if last > first else str(first) for first, last in spans[:10]]
    return ", ".join(shown) + (", ..." if len(spans) > 10 else "")


def rewrite_metrics(directory: Path, lines: list[dict[str, Any]]) -> None:
    """Replaces `metrics.jsonl` by these lines."""
    _replace(directory / METRICS, "".join(json.dumps(json_ready(line)) + "\n" for line in lines))


def append_metrics(directory: Path, line: Mapping[str, Any]) -> None:
    """Adds one line, handed to the operating system before this returns."""
    with _writing(directory / METRICS), (directory / METRICS).open("a") as file:
        file.write(json.dumps(json_ready(line)) + "\n")


def sync_metrics(directory: Path) -> None:
    """Returns when all lines are on disk; call it before the checkpoint of the last one."""
    with _writing(directory / METRICS), (directory / METRICS).open("a") as file:
        os.fsync(file.fileno())
