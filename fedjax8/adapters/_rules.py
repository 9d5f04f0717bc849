"""Rules of formats by layer, held against the layers that a model has."""

from collections.abc import Iterable

from fedjax8.numerics.format_rules import FormatRules, modules_of
from fedjax8.paths import matching


def check_rules(rules: FormatRules, layers: Iterable[str], what: str) -> None:
    """Raises UserError that names the paths if a pattern of the rules matches no layer."""
    matching(rules.patterns, list(dict.fromkeys(path for layer in layers for path in modules_of(layer))), what)
