"""The 8-bit format of a run and its rules by layer, handed to every part that takes them."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from fedjax8.config import MIXED
from fedjax8.errors import UserError
from fedjax8.numerics import formats
from fedjax8.numerics.format_rules import format_rules, parse_rules


class RunFormat:
    """The 8-bit format of a run, `config.format`, and its rules, `config.format_rules`: handed to every part whose
    factory has settings `format` and `rules` that are None by default."""

    def __init__(self, name: str, rules: Mapping[str, str] | None = None) -> None:
        self.name, self.rules = name, dict(rules or {})
        self.used = self.rules_used = False

    def given(self, where: str, config: ConfigDict, takes: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        """The settings that a part inherits; UserError if its own format or rules differ, or its format is missing
        where each part must have one."""
        if "format" not in takes or takes["format"].default is not None:
            return {}
        self.used, own = True, config.get("format")
        if own is not None and own not in formats.FORMATS:
            return {}  # the factory checks them
        if self.name == MIXED and own is None:
            raise UserError(f"config.format is {MIXED}, so each part names its format: set --{where}.format")
        if own not in (None, self.name) and self.name != MIXED:
            raise UserError(
                f"{where}.format is {own}, but config.format, which all parts inherit, is {self.name}; set "
                f"--config.format={own} for all, or --config.format={MIXED} and a format for each part"
            )
        return ({"format": self.name} if own is None else {}) | self._given_rules(where, config, takes)

    def _given_rules(self, where: str, config: ConfigDict, takes: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
        if "rules" not in takes or takes["rules"].default is not None:
            return {}
        self.rules_used, own = True, config.get("rules")
        if own is not None and not isinstance(own, Mapping):
            return {}  # the factory checks them
        if own is not None and self.name != MIXED and list(dict(own).items()) != list(self.rules.items()):
            raise UserError(
                f"{where}.rules is {_shown(dict(own))}, but config.format_rules, which all parts inherit, is "
                f"{_shown(self.rules)}; set --config.format_rules={_shown(dict(own))} for all, or "
                f"--config.format={MIXED} with a format and rules for each part"
            )
        return {"rules": self.rules} if self.rules and own is None else {}

    def check_used(self) -> None:
        """Raises UserError if it is not the default, or has rules, and no part took that."""
        if self.name != formats.DEFAULT and not self.used:
            raise UserError(
                f"config.format={self.name} changes nothing, since no adapter, codec or refinement of this run takes "
                "it; leave it out, or set --config.adapter.name=qat or --config.uplink.name=fp8"
            )
        if self.rules and not self.rules_used:
            raise UserError(
                f"config.format_rules={_shown(self.rules)} changes nothing, since no adapter, codec or refinement of "
                "this run takes it; leave it out, or set --config.adapter.name=qat or --config.uplink.name=fp8"
            )


def _shown(rules: Mapping[str, str]) -> str:
    return ",".join(f"{pattern}={name}" for pattern, name in rules.items()) or "empty"


def run_format_of(name: str, texts: Sequence[str]) -> RunFormat:
    """The format and rules that a config gives; UserError for rules that cannot be read, or that a mix would ignore."""
    rules = parse_rules(texts, "config.format_rules")
    if rules and name == MIXED:
        raise UserError(
            f"config.format is {MIXED}, so each part names its own rules; set those of the adapter and of the codecs, "
            "and leave config.format_rules empty"
        )
    try:
        format_rules(None, rules)
    except UserError as error:
        raise UserError(f"config.format_rules: {error}") from error
    return RunFormat(name, rules)
