"""Flags `--config.FIELD=VALUE` of a command line, and advice for flags that there are not."""

import difflib
from collections.abc import Iterable

from fedjax8.config_fields import FIELDS
from fedjax8.errors import UserError
from fedjax8.words import NOTES, field_of


def split_overrides(argv: list[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """(argv without `--config.path=value` and `--config.path value`, those as (path, text) pairs)."""
    rest, pairs = [], []
    arguments = iter(argv)
    for argument in arguments:
        name, equals, text = argument.lstrip("-").partition("=")
        if not argument.startswith("-") or not name.startswith("config."):
            rest.append(argument)
            continue
        if not equals:
            text = next(arguments, "--")
            if text.startswith("--"):
                raise UserError(f"{argument} needs a value: {argument}=VALUE")
        pairs.append((name.removeprefix("config."), text))
    return rest, pairs


def unknown_flag(name: str, value: str, flags: Iterable[str]) -> str:
    """The message for a flag that there is not: the config field that it means, or else the nearest flag or field.

    >>> unknown_flag("rounds", "3", ())
    'no flag --rounds; did you mean --config.rounds=3?'
    """
    field = field_of(name, FIELDS)
    if field:
        known = FIELDS.get(field)
        component = known is not None and known.package and not isinstance(known.default, tuple)
        note = NOTES.get(name, "")
        given = f"={value}" if value and not note else ""
        return (
            f"no flag --{name}; did you mean --config.{field}{'.name' if component else ''}{given}?{note and ' '}{note}"
        )
    every = {flag: f"--{flag}" for flag in flags} | {path.rpartition(".")[2]: f"--config.{path}" for path in FIELDS}
    near = difflib.get_close_matches(name, every, n=1, cutoff=0.6)
    return f"no flag --{name}" + (f"; did you mean {every[near[0]]}?" if near else "; see --help")
