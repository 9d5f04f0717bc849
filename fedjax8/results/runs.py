"""Run folders read back, and grouped into settings.

A run folder holds `config.json`, `metrics.jsonl` (one line per logged round) and, once the run has ended,
`summary.json`. Read too, where they are there: `about.json` (the split and the messages, see `running.about`) and
`clients.json` (accuracy of the final models by client). Runs whose configs differ only in `seed` are one
*setting*; `results.comparison` has its accuracies and totals.

NumPy and the standard library only: reading results needs no accelerator and no JAX.
"""

import itertools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from fedjax8.directions import CLASSIFICATION, Measures
from fedjax8.errors import UserError
from fedjax8.given import has_form, read_object
from fedjax8.results.log import OTHERS, number, read_lines
from fedjax8.results.record import TIMES, Labels, in_one_line, labels_in, measures_in, staleness_in

ABOUT, CLIENTS, SEEDS = "about.json", "clients.json", "seeds.json"
ABSENT = "-"
LABEL_LENGTH = 44
"""Longest label, in characters, made of config fields; with more, directory names are easier to read."""
PLACES = ("seed", "workdir", "data_dir", "checkpoint_every", "checkpoint_seconds")
"""Config fields that do not make another setting: the seed, where files are, and when checkpoints come."""


_SKEW = {"hellinger_mean": float, "hellinger_max": float, "js_mean": float}
_SPLIT = {
    "clients": int,
    "rows?": int,
    "sizes?": [int],
    "labels?": (None, {"clients": [int], "counts": [[int]]}),
    "skew?": (None, _SKEW),
}
_GRAPH = {
    "workers": int,
    "messages": int,
    "degree": int,
    "changes": bool,
    "disagreement?": float,
    "edges?": [[int]],
}
_MESSAGE = {"direction": str, "name": str, "message_bytes": int, "float32_bytes": int, "leaves": {str: int}}
FORMS = {
    ABOUT: {"split?": (None, _SPLIT), "messages?": [_MESSAGE], "timeline?": [TIMES], "graph?": _GRAPH},
    CLIENTS: {
        "rows?": str,
        "clients?": [int],
        "names?": [str],
        "counts?": [int],
        "metric?": str,
        "accuracy?": [float],
        "without_rows?": int,
    },
}
"""Forms of the parts that are read of these files."""


class RunFolder(NamedTuple):
    """One run folder. `T` logged lines, in order of rounds, each round once."""

    path: Path
    config: dict[str, Any] | None
    """Dotted field to value, without the seed; None if there is no readable `config.json`."""
    seed: Any
    origin: dict[str, Any]
    """Versions and devices, as dotted fields."""
    rounds: np.ndarray
    """int64 `[T]`."""
    uplink_bytes: tuple[int, ...]
    """Cumulative over all clients, `T` Python ints."""
    downlink_bytes: tuple[int, ...]
    other_bytes: Mapping[str, tuple[int, ...]]
    """Likewise, of the directions beside these that the run has: `peer_bytes`, `edge_bytes`."""
    elapsed_seconds: np.ndarray
    """float64 `[T]`: `round_seconds` (of one round) times the rounds since the line before, summed up, without
    `compile_seconds`. These are in the first line of a call whose rounds share the call's seconds evenly: within a call
    the sum is held at that of the line before."""
    metrics: dict[str, np.ndarray]
    """Every number logged, float64 `[T]`, NaN where a line lacks it, or has one that is not finite."""
    summary: dict[str, Any]
    """`summary.json`; empty if it is missing or older than the last line."""
    notes: tuple[str, ...]
    """Remarks for the reader of a comparison, one line each."""
    about: Mapping[str, Any] = MappingProxyType({})
    """`about.json`; empty if it is missing."""
    clients: Mapping[str, Any] = MappingProxyType({})
    """`clients.json`; empty if it is missing."""
    measures: Measures = CLASSIFICATION
    """How the run is judged, by its `config.json`."""
    labels: Labels = Labels()
    staleness: Mapping[int, int] = MappingProxyType({})
    """Contributions by age, over all lines that have them."""
    logged: Mapping[str, np.ndarray] = MappingProxyType({})
    """Whether a line has the metric, finite or not, bool `[T]`, of every name in `metrics`."""

    def last(self, metric: str) -> float | None:
        """The value in the last line that has the metric, NaN where it is not finite; None if no line has it."""
        (there,) = np.nonzero(self.logged.get(metric, ()))
        value = float(self.metrics[metric][there[-1]]) if len(there) else None
        return value if value is None or math.isfinite(value) else math.nan


class Setting(NamedTuple):
    """Runs that differ in their seed alone."""

    label: str
    fields: dict[str, str]
    """The config fields in which the settings compared differ, as text."""
    runs: tuple[RunFolder, ...]


def read_run(path: str | os.PathLike) -> RunFolder:
    """The run in a folder.

    Raises `UserError` if the folder or its metrics are missing, or a line other than the last is malformed.
    """
    path = Path(path)
    if not path.is_dir():
        raise UserError(f"no such run folder: {str(path)!r}; give the --workdir of a run")
    notes: list[str] = []
    document = _read_object(path / "config.json", notes)
    if document is None:
        notes.append(f"{path}: no config.json, so it is shown as a setting of its own")
    known, document = document is not None, document or {}
    config = document.get("config", document)
    config = config if isinstance(config, dict) else {"config": config}
    lines = read_lines(path, notes)
    rounds = np.array([line["round"] for line in lines], np.int64)
    metrics = {
        name: np.array([number(line.get(name)) for line in lines], np.float64)
        for name in dict.fromkeys(name for line in lines for name in line)
        if name not in ("round", "staleness")
    }
    logged = {name: np.array([name in line for line in lines]) for name in metrics}
    per_round = metrics.get("round_seconds", np.full(len(lines), np.nan))
    compiling = np.nancumsum(metrics.get("compile_seconds", np.zeros(len(lines))))
    in_rounds = np.cumsum(per_round * np.diff(rounds, prepend=0))
    summary = _read_object(path / "summary.json", notes) or {}
    if summary and number(summary.get("rounds")) < rounds[-1]:
        summary = {}
    missing = int(rounds[-1]) - len(rounds)
    if missing and np.median(np.diff(rounds, prepend=0)) == 1:  # not one that was logged now and then
        notes.append(f"{path}: {missing} of {rounds[-1]} rounds have no line: they were lost")
    if summary and number(summary.get("rounds")) > rounds[-1]:
        notes.append(f"{path}: metrics.jsonl ends at round {rounds[-1]} of {summary['rounds']}: later lines were lost")
    if not summary.get("finished", False):
        notes.append(f"{path}: the run is unfinished, read up to round {rounds[-1]}")
    file = f"{path / 'config.json'}"
    measures, labels = measures_in(document, file, notes), labels_in(document, file, notes)
    about, clients = (_read_object(path / name, notes, form) or {} for name, form in FORMS.items())
    return RunFolder(
        path=path,
        config={k: v for k, v in flatten(config).items() if k and k not in PLACES} if known else None,
        seed=config.get("seed"),
        origin=flatten({k: document[k] for k in ("versions", "devices") if k in document}),
        rounds=rounds,
        uplink_bytes=tuple(line["uplink_bytes"] for line in lines),
        downlink_bytes=tuple(line["downlink_bytes"] for line in lines),
        other_bytes={way: tuple(line.get(way, 0) for line in lines) for way in OTHERS if way in lines[-1]},
        elapsed_seconds=np.maximum.accumulate(np.maximum(in_rounds - compiling, 0.0)),
        metrics=metrics,
        summary=summary,
        notes=tuple(notes),
        about=about,
        clients=clients,
        measures=measures,
        labels=labels,
        staleness=staleness_in(lines),
        logged=logged,
    )


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path to leaf; a list of plain values is one leaf, and so is an empty container."""
    if isinstance(tree, dict) and tree:
        children: Iterable[tuple[Any, Any]] = tree.items()
    elif isinstance(tree, list) and any(isinstance(child, dict | list) for child in tree):
        children = enumerate(tree)
    else:
        return {prefix: tree}
    return {
        path: leaf
        for name, child in children
        for path, leaf in flatten(child, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _read_object(path: Path, notes: list[str], form: Any = None) -> dict[str, Any] | None:
    """A JSON object of a form, or None (with a note unless the file is merely missing)."""
    try:
        found = read_object(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if found is None:
        notes.append(f"{path}: not a JSON object, ignored")
        return None
    if form is not None and not has_form(found, form):
        notes.append(f"{path}: damaged, or of another version; ignored")
        return None
    return found


def read_settings(paths: Iterable[str | os.PathLike], tags: Sequence[str] = ()) -> tuple[list[Setting], list[str]]:
    """Settings in the order given, labeled by their names or the config fields in which they differ, and warnings.

    A path that is a file (a shell's `*` catches those) or was given before is left out with a warning; a folder of runs
    (of seeds side by side, or of a sweep) stands for those in it that have begun. With `tags`, only runs that have all
    of them are read. Raises `UserError` as `read_run` does, and if no run is left.
    """
    warnings: list[str] = []
    runs: dict[Path, RunFolder] = {}
    for path in (run for given in paths for run in _runs_in(Path(given), warnings)):
        if path.is_file():
            if path.name == SEEDS:
                continue
            warnings.append(f"{path}: a file, not a run folder; left out")
        elif path.resolve() in runs:
            warnings.append(f"{path}: given twice; counted once")
        else:
            runs[path.resolve()] = read_run(path)
    if not runs:
        raise UserError("no run folder given; give one or more, for example runs/*")
    if tags:
        known = sorted({tag for run in runs.values() for tag in run.labels.tags})
        asked = set(map(in_one_line, tags))
        runs = {path: run for path, run in runs.items() if asked <= set(run.labels.tags)}
        if not runs:
            raise UserError(f"no run has the tag {', '.join(tags)}; there are {', '.join(known) or 'no tags at all'}")
    warnings += [note for run in runs.values() for note in run.notes]
    warnings += _differing_origins(list(runs.values()))

    groups: dict[str, list[RunFolder]] = {}
    for resolved, run in runs.items():
        identity = str(resolved) if run.config is None else json.dumps(run.config)
        groups.setdefault(identity, []).append(run)
    settings: list[tuple[RunFolder, ...]] = []
    for group in groups.values():
        if len({json.dumps(run.seed) for run in group}) == len(group):
            settings.append(tuple(group))
        else:
            names = ", ".join(str(run.path) for run in group)
            warnings.append(f"same config and a seed in common, so each stands for itself: {names}")
            settings += [(run,) for run in group]

    configs = _components_named([group[0].config or {} for group in settings])
    every = dict.fromkeys(field for config in configs for field in config)
    fields = [f for f in every if len({_text(c, f) for c in configs}) > 1]
    differing = [{f: _text(c, f) for f in fields} for c in configs]
    labels = _named(_labels(configs, fields, settings), settings)
    return [Setting(*parts) for parts in zip(labels, differing, settings, strict=True)], warnings


def _runs_in(path: Path, warnings: list[str]) -> list[Path]:
    """The run folder itself, or those right in it that have logged a round, in natural order (2 before 10)."""
    inner = [] if (path / "metrics.jsonl").exists() else [file.parent for file in path.glob("*/metrics.jsonl")]
    inner.sort(key=lambda p: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", p.name)])
    begun = [p for p in inner if b"\n" in (p / "metrics.jsonl").read_bytes()]
    if begun:
        warnings += [f"{p}: not logged a round yet, left out" for p in inner if p not in begun]
    return begun or [path]


def _differing_origins(runs: Sequence[RunFolder]) -> list[str]:
    names = dict.fromkeys(name for run in runs for name in run.origin)
    differing = [n for n in names if len({_text(run.origin, n) for run in runs if run.origin}) > 1]
    if not differing:
        return []
    shown = ", ".join(differing[:4]) + (", ..." if len(differing) > 4 else "")
    return [f"the runs were made with different {shown}: seconds may not compare"]


def _components_named(configs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The configs with `part: none` as `part.name: none` where `part` is a component in another config."""
    named = {f.removesuffix(".name") for config in configs for f in config if f.endswith(".name")}
    return [{f"{f}.name" if v is None and f in named else f: v for f, v in c.items()} for c in configs]


def _text(config: dict[str, Any], field: str) -> str:
    """A config value as a reader writes it; a dash where the config has no such field."""
    value = config.get(field, ABSENT)
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)


def _labels(configs: list[dict], fields: list[str], settings: list[tuple[RunFolder, ...]]) -> list[str]:
    """Labels of `field=value` from the fields all settings have, else from all fields; else directory names.

    Fields that only some settings have are mostly the parameters of a component whose name differs already.
    """
    short = {f: short_name(f, fields) for f in fields}
    shared = [f for f in fields if all(f in c for c in configs)]
    for chosen in (shared, fields):
        labels = [", ".join(f"{short[f]}={_text(c, f)}" for f in chosen) for c in configs]
        if all(labels) and len(set(labels)) == len(labels) and max(map(len, labels)) <= LABEL_LENGTH:
            return labels
    return _directory_labels([[run.path for run in group] for group in settings])


def _named(labels: list[str], settings: list[tuple[RunFolder, ...]]) -> list[str]:
    """The labels, with the name of settings whose runs have one in common in their place; beside it, where others have
    that name too."""
    names = [next(iter(found)) if len(found := {run.labels.name for run in s}) == 1 else "" for s in settings]
    alone = [f"{name} ({label})" if names.count(name) > 1 else name for name, label in zip(names, labels, strict=True)]
    made = [chosen if name else label for chosen, name, label in zip(alone, names, labels, strict=True)]
    return made if len(set(made)) == len(made) else labels


def short_name(field: str, fields: list[str]) -> str:
    """Last component of a dotted field, more where that is ambiguous; `uplink.name` is `uplink`."""
    trimmed = {f: f.removesuffix(".name").split(".") for f in fields}
    parts = trimmed[field]
    for n in range(1, len(parts) + 1):
        alone = sum(other[-n:] == parts[-n:] for other in trimmed.values()) == 1
        if alone and not parts[-n].isdigit():  # a place in a list says nothing without the list's name
            return ".".join(parts[-n:])
    return field


def _directory_labels(groups: list[list[Path]]) -> list[str]:
    """Common beginning of a group's directory names, without `seed0` and the like; else full names."""
    absolute = [[Path(os.path.abspath(p)) for p in group] for group in groups]
    flat = [p for group in absolute for p in group]
    base = flat[0].parent if len(flat) == 1 else Path(os.path.commonpath(flat))
    names = [[p.relative_to(base).as_posix() if p != base else p.name for p in group] for group in absolute]
    common = [(_beginning(group) or base.name) if len(group) > 1 else _without_seed(group[0]) for group in names]
    if all(common) and len(set(common)) == len(common):
        return common
    common = [name if len(group) > 1 else group[0] for name, group in zip(common, names, strict=True)]
    if all(common) and len(set(common)) == len(common):
        return common
    return [group[0] if len(group) == 1 else f"{group[0]} and {len(group) - 1} more" for group in names]


def _beginning(names: list[str]) -> str:
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return re.sub(r"([-_./ ]+(seed)?|seed)[-_.=/ ]*\d*$", "", "".join(letters[0] for letters in same))


def _without_seed(name: str) -> str:
    """The name of one run, without a `seed0` at its end unless that is all there is."""
    return re.sub(r"[-_./ ]seed[-_.=]?\d+$", "", name)
