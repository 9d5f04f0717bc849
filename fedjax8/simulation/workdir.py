"""The files of a run: `config.json`, `metrics.jsonl`, `summary.json`, a lock. Every file is whole or absent.

Metrics are written before the checkpoint of the same round, and are on disk before it, so that on resuming everything
up to the checkpoint is there and what came after it is cut off and done again, also after a power cut.
"""

import contextlib
import fcntl
import json
import math
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError
from fedjax8.given import parse, read_object
from fedjax8.simulation.runs import flatten

CONFIG, METRICS, SUMMARY, LOCK = "config.json", "metrics.jsonl", "summary.json", ".lock"
CLIENT_STATES = "client_states"


def client_states_folder(directory: Path, process: int) -> Path:
    """Where a process keeps the states of all clients, if they are kept on disk."""
    return directory / (f"{CLIENT_STATES}-{process}" if process else CLIENT_STATES)


def json_ready(value: Any) -> Any:
    """`value` with what JSON cannot say (NaN, infinities) as None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {k: json_ready(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(v) for v in value]
    return value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted fields in which two plain configs differ, as `field: old -> new`."""
    a, b = flatten(dict(old)), flatten(dict(new))
    missing = "(unset)"
    return [
        f"{k}: {a.get(k, missing)} -> {b.get(k, missing)}"
        for k in sorted(a | b)
        if a.get(k, missing) != b.get(k, missing)
    ]


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON so that the file is either the old one or the whole new one."""
    _replace(path, json.dumps(json_ready(value), indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    with _writing(path), part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or else the name could be on disk before what it names
        os.replace(part, path)


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
        directory.mkdir(parents=True, exist_ok=True)
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


def claim(directory: Path, record: Mapping[str, Any]) -> None:
    """Writes `config.json`, or checks that the one there has the same `config`; UserError naming fields that differ."""
    path = directory / CONFIG
    if path.exists():
        try:
            old = dict((read_object(path) or {})["config"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--workdir: {path} is not a fedjax8 config ({error}); choose another directory") from error
        changed = differences(old, json.loads(json.dumps(json_ready(record["config"]))))
        if changed:
            raise UserError(
                f"--workdir: {directory} holds a run of another config ({'; '.join(changed)}); choose another directory"
            )
    write_json(path, record)


def read_metrics(directory: Path, last_round: int) -> list[dict[str, Any]]:
    """Lines of rounds 1 to `last_round`, each once; UserError if one is missing."""
    path, lines = directory / METRICS, []
    for text in path.read_text(errors="replace").splitlines() if path.exists() else ():
        line = parse(text)
        if line is None:
            break  # half a line, or what a power cut made of it
        if not isinstance(line, dict) or not isinstance(line.get("round"), int) or line["round"] > last_round:
            break
        lines.append(line)
    if [line["round"] for line in lines] != list(range(1, last_round + 1)):
        raise UserError(
            f"--workdir: {path} does not hold rounds 1 to {last_round} of the checkpoint, each once; restore it, or "
            "choose another directory"
        )
    return lines


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
