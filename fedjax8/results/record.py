"""Parts of a run's `config.json` beside its config: how the run is judged, and a person's labels.

    {"config": {...}, "task": {"name": "regression", "metric": "mae", "directions": {"mae": "lower", ...}},
     "labels": {"name": "baseline", "tags": ["paper"], "note": "..."}}

Neither belongs to the run's identity. And forms of what other files of a run tell of time. Standard library only.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedjax8.directions import CLASSIFICATION, HIGHER, LOWER, Measures
from fedjax8.given import has_form

TASK = {"metric": str, "directions?": {str: str}}
LABELS = {"name?": str, "tags?": [str], "note?": str}
TIMES = {
    "round": int,
    "seconds": float,
    "asked": int,
    "clients": [int],
    "received": [float],
    "trained": [float],
    "sent": [float],
    "fates": [str],
}
"""A round of the timeline in `about.json`; see `running.timeline`."""


class Labels(NamedTuple):
    """Words of a person about a run."""

    name: str = ""
    tags: tuple[str, ...] = ()
    note: str = ""


def measures_in(document: Mapping[str, Any], where: str, notes: list[str]) -> Measures:
    """How a run is judged; a classification where nothing is said. A note is added about what cannot be read."""
    task = document.get("task") if "config" in document else None  # else the document is a bare config
    if task is None:
        return CLASSIFICATION
    if not has_form(task, TASK) or not set(task.get("directions", {}).values()) <= {HIGHER, LOWER}:
        notes.append(f"{where}: its task is damaged, or of another version; read as a classification")
        return CLASSIFICATION
    return Measures(task["metric"], task.get("directions", {}))


def labels_in(document: Mapping[str, Any], where: str, notes: list[str]) -> Labels:
    """A person's labels, in one line each. A note is added about what cannot be read."""
    labels = document.get("labels") if "config" in document else None
    if labels is None:
        return Labels()
    if not has_form(labels, LABELS):
        notes.append(f"{where}: its labels are damaged, or of another version; ignored")
        return Labels()
    tags = tuple(in_one_line(tag) for tag in labels.get("tags", ()))
    return Labels(in_one_line(labels.get("name", "")), tags, in_one_line(labels.get("note", "")))


def in_one_line(text: str) -> str:
    """Text with one space for each run of white space, and without control characters, which would move a terminal's
    cursor, end a row of a table, and which LaTeX refuses.

    >>> in_one_line("a\\n b\\x1b[31m")
    'a b[31m'
    """
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable() or letter == "\u200d")


def staleness_in(lines: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Contributions by age, from the youngest, over the lines that tell it as `"staleness": {"0": 7, "1": 3}`."""
    found: dict[int, int] = {}
    for counts in (line["staleness"] for line in lines if "staleness" in line):
        if has_form(counts, {str: int}) and all(age.isascii() and age.isdigit() for age in counts):
            for age, count in counts.items():
                found[int(age)] = found.get(int(age), 0) + count
    return dict(sorted(found.items()))
