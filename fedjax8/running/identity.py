"""The identity of a run, by which its folder knows the commands that may go on with it: `config.json`.

    {"config": ..., "resolved": ..., "versions": ..., "devices": ..., "machine": ..., "data": ..., "command": ...,
     "commit": ..., "host": ..., "date": ..., "parts": [{"after_round": 0, "date": ..., ...}, ...]}

`config` and `data` decide: they must be those with which the run began, but for the fields in `MAY_CHANGE`. The rest
tells where it came from, and is that of the command which ran last; `parts` has that of every command that did rounds.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax8.config_fields import FIELDS, is_component
from fedjax8.data.digest import without_floats
from fedjax8.errors import UserError
from fedjax8.given import read_object
from fedjax8.results.runs import flatten
from fedjax8.running.schedule import Schedule
from fedjax8.running.workdir import CONFIG, json_ready, write_json

IDENTITY = ("config", "data", "devices", "machine", "versions")
"""Parts of a record that checkpoints hold too."""
ORIGIN = ("date", "host", "command", "commit", "versions", "devices", "machine")
"""Parts of a record that tell where the rounds of a command were run."""
PARTS = "parts"

MAY_CHANGE = {
    "rounds": "a round does not depend on how many follow it",
    "eval_every": "evaluations change no round",
    "evaluate_clients.every": "evaluations change no round",
    "evaluate_clients.clients": "evaluations change no round",
    "evaluate_clients.fine_tune_steps": "those steps are forgotten",
    "checkpoint_every": "a checkpoint changes no round",
    "checkpoint_seconds": "a checkpoint changes no round",
    "rounds_per_call": "a round is the same in any call",
    "on_nan": "no round before had a contribution that was not finite, or it was left out",
}
"""Config fields that may be others when a run goes on, and why it then ends as if they had been so from the start. The
line of the round at which it ended before keeps the evaluation that the end gave it."""
DECIDING = ("eval_every", "evaluate_clients.every", "evaluate_clients.clients", "evaluate_clients.fine_tune_steps")
"""Those of them that callbacks decide by."""


_DEFAULTS = {
    path: list(value) if isinstance(value, tuple) else value
    for name, field in FIELDS.items()
    for path, value in flatten({name: dict(field.default) if is_component(field.default) else field.default}).items()
}
"""By dotted field: a config that lacks one was written before there was such a field."""


def fixed_fields(callbacks: bool, calibrated: bool) -> dict[str, str]:
    """Fields of `MAY_CHANGE` that must not change in a run, with the reason.

    Args:
      callbacks: whether callbacks decide by its metrics.
      calibrated: whether a part of it read the number of rounds, such as noise for a target epsilon.
    """
    fixed = dict.fromkeys(DECIDING, "callbacks decide by evaluations") if callbacks else {}
    return fixed | ({"rounds": "the noise is calibrated for the number of rounds"} if calibrated else {})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted fields in which two plain configs differ, as `field: old -> new`."""
    return [f"{field}: {change}" for field, change in changes(old, new).items()]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, str]:
    """Dotted fields in which two plain configs differ, to `old -> new`."""
    a, b = flatten(dict(old)), flatten(dict(new))
    missing = "(unset)"
    return {
        k: f"{a.get(k, missing)} -> {b.get(k, missing)}"
        for k in sorted(a | b)
        if a.get(k, missing) != b.get(k, missing)
    }


def reordered(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Where two plain configs with the same fields have them in another order, as `a before b -> b before a`. Rules are
    such fields: the first match wins."""
    fields = zip(flatten(dict(old)), flatten(dict(new)), strict=False)
    return next(([f"{a} before {b} -> {b} before {a}"] for a, b in fields if a != b), [])


def check_claim(directory: Path, record: Mapping[str, Any], fixed: Mapping[str, str] | None = None) -> None:
    """Writes `config.json` if there is none, or checks that the one there is of the same run (`refuse_other`)."""
    path = directory / CONFIG
    if not path.exists():
        write_json(path, record)
        return
    try:
        old = read_object(path) or {}
        new = json.loads(json.dumps(json_ready(record)))
        refuse_other({**old, "config": dict(old["config"])}, new, directory, fixed)
    except UserError:  # it is whole, but not of this run
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"--workdir: {path} is not a fedjax8 config ({error}); put it back, or choose another directory. If the "
            "rest is a run's it may be removed: checkpoints know their config"
        ) from error


def write_part(directory: Path, record: Mapping[str, Any], round_number: int, changed: Sequence[str]) -> None:
    """Writes `config.json` of a command that goes on after a round: its own record, and the list of all parts.

    `changed` names devices and versions that are not those of the part before.
    """
    path = directory / CONFIG
    found = read_object(path) if path.exists() else None
    kept = [part for part in parts_of(found or {}) if part["after_round"] < round_number]
    part = {"after_round": round_number} | {name: record[name] for name in ORIGIN if name in record}
    part |= {"changed": list(changed)} if changed else {}
    write_json(path, {**record, PARTS: [*kept, part]})


def check_rounds(place: Path, old: Mapping[str, Any], done: int, schedule: Schedule, callbacks: bool) -> None:
    """Raises UserError where a run cannot go on as if its rounds had been asked for from the start.

    Args:
      place: its folder.
      old: the record of its checkpoint.
      done: rounds done.
      schedule: the rounds that are asked for now.
      callbacks: whether callbacks decide by its metrics.
    """
    if schedule.rounds < done:
        raise UserError(
            f"--workdir: {place} has done {done} rounds, more than config.rounds={schedule.rounds}; nothing is lost: "
            f"ask for {done} or more, or choose another directory"
        )
    ended = dict(old.get("config", {})).get("rounds") == done < schedule.rounds
    for every in (schedule.eval_every, schedule.clients_every):
        if callbacks and ended and every and done % every:
            raise UserError(
                f"--workdir: {place} ended after round {done}, and its callbacks decided by the evaluation there, "
                f"which a longer run with a period of {every} does not have; choose another directory, or start from "
                f"its model: --config.init_from={place}"
            )


def parts_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a run by its `config.json`, in order; of one without such a list, what it says of its start."""
    first = {"after_round": 0} | {name: record[name] for name in ORIGIN if name in record}
    listed = record.get(PARTS, [first, *record.get("resumed", [])])
    return [part for part in listed if isinstance(part, dict) and type(part.get("after_round")) is int]


def refuse_other(
    old: Mapping[str, Any], new: Mapping[str, Any], place: Path, fixed: Mapping[str, str] | None = None
) -> None:
    """Raises UserError if two records (contents of `config.json`) differ in data, or in their config but for fields
    that may change.

    A part that one of them lacks is not compared. `place` is where the old one lies; `fixed` are fields that must not
    change in this run, with the reason.
    """
    fixed = fixed or {}
    if "config" in old and "config" in new:
        a, b = ({**x["config"]} for x in (old, new))
        changed = {f: c for f, c in changes(a, b).items() if f in flatten(a) or flatten(b)[f] != _DEFAULTS.get(f)}
        allowed = [f for f in changed if f in MAY_CHANGE and f not in fixed]
        refused = {field: change for field, change in changed.items() if field not in allowed}
        if said := [f"{f}: {c}{_because(f, fixed)}" for f, c in refused.items()] or _reordered_but(a, b, changed):
            raise UserError(
                f"--workdir: {place} holds a run of another config ({'; '.join(said)}); choose another directory"
            )
    if said := other_data(old, new):
        raise UserError(
            f"--workdir: {place} holds a run on other data ({'; '.join(said)}); put back the data it began "
            "with, or choose another directory"
        )


def other_data(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences between the data of two records; none where one lacks them. Floats computed by other versions or
    devices count as equal."""
    if "data" not in old or "data" not in new:
        return []
    a, b = (without_floats(x["data"]) if _other_origins(old, new) else x["data"] for x in (old, new))
    return differences(a, b)


def _because(field: str, fixed: Mapping[str, str]) -> str:
    return f", but {fixed[field]}" if field in fixed else ""


def _reordered_but(old: Mapping[str, Any], new: Mapping[str, Any], changed: Mapping[str, str]) -> list[str]:
    """As `reordered`, of the fields that both have and that have not changed."""
    a, b = flatten(dict(old)), flatten(dict(new))
    both = {field for field in a if field in b and field not in changed}
    return reordered(*({field: value for field, value in config.items() if field in both} for config in (a, b)))


def says_of_others(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Differences of devices, machines or versions between two records that `refuse_other` lets pass, such as
    `devices: 2 cpu:cpu -> 4 cpu:cpu`, and which columns of floats those computed differently."""
    both = "data" in old and "data" in new
    return [*_other_origins(old, new), *(differences(old["data"], new["data"]) if both else [])]


def _other_origins(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    def origin(record: Mapping[str, Any]) -> dict[str, Any]:
        devices = " and ".join(f"{count} {kind}" for kind, count in Counter(record.get("devices", ())).items())
        return {"devices": devices, **{part: record[part] for part in ("machine", "versions") if part in both}}

    both = old.keys() & new.keys()
    return differences(origin(old), origin(new)) if "versions" in both else []
