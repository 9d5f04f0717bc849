"""A person's labels of a run, in its `config.json`: name, tags, note. They are no part of its identity.

{"labels": {"name": "baseline", "tags": ["paper", "fp8"], "note": "after the fix of the split"}}
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax8.given import has_form, read_object
from fedjax8.results.record import LABELS
from fedjax8.running.workdir import CONFIG


def labels(name: str | None = None, tags: Sequence[str] = (), note: str | None = None) -> dict[str, Any]:
    """The labels that are given; an empty name or note takes an earlier one away, and so does one empty tag."""
    kept = list(dict.fromkeys(tag.strip() for tag in tags if tag.strip()))
    given = {"name": name, "tags": kept if tags else None, "note": note}
    return {part: value for part, value in given.items() if value is not None}


def labeled(record: Mapping[str, Any], given: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """The record with the labels given; others are as in the `config.json` of the folder, if there is one."""
    earlier: Any = None
    if folder:
        try:
            earlier = (read_object(folder / CONFIG) or {}).get("labels")
        except OSError:
            earlier = None  # there is none yet, or opening the run says what is wrong with it
    known = earlier if has_form(earlier, LABELS) else {}
    found = {part: value for part, value in {**known, **given}.items() if value}
    return {**record, "labels": found} if found else dict(record)
