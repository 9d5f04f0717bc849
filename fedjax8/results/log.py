"""The log of a run, `metrics.jsonl`: a JSON object a line, for each logged round. Standard library only."""

import json
import math
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError

TOTALS, OTHERS = ("uplink_bytes", "downlink_bytes"), ("peer_bytes", "edge_bytes")
"""Totals of bytes that every line has, and those of runs with other directions."""
MOST = 2**63 - 1
"""Largest round and total of bytes: they become int64."""


class NotJSON(ValueError):
    """A line that is no JSON."""


class NotYet(UserError):
    """There is nothing to read until a run has logged a round, or been evaluated."""


def read_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The logged lines; of lines logged again after a resume, the last."""
    file = path / "metrics.jsonl"
    try:
        # Not splitlines(): it also splits at characters that JSON allows inside a string.
        texts = file.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        inner = any(path.glob("*/metrics.jsonl")) or any(path.glob("*/*/metrics.jsonl"))
        hint = f"its subfolders do: give {path}/*" if inner else "give the --workdir of a run that has begun"
        raise (UserError if inner else NotYet)(f"{str(path)!r} holds no metrics.jsonl; {hint}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    numbered = [(i, text) for i, text in enumerate(texts, 1) if text.strip()]
    lines: list[dict[str, Any]] = []
    repeated = 0
    for i, text in numbered:
        try:
            line = _parse_line(text)
        except NotJSON:
            if i != numbered[-1][0]:
                raise UserError(f"{file}, line {i}: not JSON; repair or remove that line") from None
            notes.append(f"{file}: the last line is half written and was ignored")
            continue
        except ValueError as error:
            raise UserError(f"{file}, line {i}: {error}; repair or remove that line") from None
        while lines and lines[-1]["round"] >= line["round"]:
            lines.pop()
            repeated += 1
        for way in (*TOTALS, *OTHERS):
            now, before = line.get(way, 0), lines[-1].get(way, 0) if lines else 0
            if now < before:
                raise UserError(
                    f"{file}, line {i}: {way} falls from {before} to {now}, but is a total; repair or remove that line"
                )
        lines.append(line)
    if not lines:
        raise NotYet(f"{file} holds no complete line: the run has not logged a round yet")
    if repeated:
        notes.append(f"{file}: {repeated} line(s) logged again after a resume; the later ones were taken")
    return lines


def _parse_line(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:  # also for numbers of thousands of digits
        raise NotJSON from error
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    for name in ("round", *TOTALS, *(name for name in OTHERS if name in line)):
        value = line.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MOST:
            raise ValueError(f"{name} must be a whole number of 64 bits, not {json.dumps(value):.40}")
    return line


def number(value: Any) -> float:
    """The value as a float, NaN for anything that is not a number, such as True, or beyond all floats."""
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return math.nan
