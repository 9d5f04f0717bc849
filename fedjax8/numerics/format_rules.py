"""A format for every layer: rules from patterns on layer paths to an 8-bit format or float32, and one for the rest.

    format(layer) = that of the first pattern that matches its path, else that of the run

A pattern that matches a module also holds for the layers inside. Adapters, codecs and refinements take the same rules,
so that a layer travels in the format that it is trained in.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from fedjax8.errors import UserError
from fedjax8.lookup import suggest
from fedjax8.numerics import formats
from fedjax8.numerics.formats import Format

FLOAT32 = "float32"
"""In place of a format: the layer is not rounded, and travels in float32."""


class FormatRules(NamedTuple):
    """The format of each layer. Hashable, so it can be a static argument of jitted functions."""

    rules: tuple[tuple[str, Format | None], ...]
    """Shell-style patterns on layer paths, in order; None for float32."""
    rest: Format
    """Format of layers that no pattern matches."""

    def of(self, layer: str) -> Format | None:
        """The format of the layer at that path; None for float32."""
        return next((fmt for pattern, fmt in self.rules if layer_matches(layer, pattern)), self.rest)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The patterns, in order."""
        return tuple(pattern for pattern, _ in self.rules)

    @property
    def formats(self) -> tuple[Format, ...]:
        """Every 8-bit format that a layer may have, each once."""
        return tuple(dict.fromkeys([self.rest, *(fmt for _, fmt in self.rules if fmt is not None)]))

    @property
    def name(self) -> str:
        """As text: `e4m3fn`, or `e4m3fn (Dense_0=float32)` with rules."""
        rules = ", ".join(f"{pattern}={fmt.name if fmt else FLOAT32}" for pattern, fmt in self.rules)
        return f"{self.rest.name} ({rules})" if rules else self.rest.name

    def record(self, user: str, layers: Sequence[str] | None = None) -> None:
        """Records a use of these rules, where one is traced; see `formats.record_use`. `layers` are the paths that the
        user knows; None: it has checked that each pattern matches one."""
        seen = layers or ()
        matched = [p for p in self.patterns if layers is None or any(layer_matches(path, p) for path in seen)]
        formats.record_use(user, self.name, dict.fromkeys(self.patterns, False) | dict.fromkeys(matched, True), seen)


def modules_of(layer: str) -> list[str]:
    """A layer's path and those of the modules that it is in, from the inside.

    >>> modules_of("blocks/0/Dense_1")
    ['blocks/0/Dense_1', 'blocks/0', 'blocks']
    """
    parts = layer.split("/")
    return ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]


def layer_matches(layer: str, pattern: str) -> bool:
    """Whether a pattern matches the path of a layer, or of a module that it is in."""
    return any(fnmatch.fnmatchcase(path, pattern) for path in modules_of(layer))


def format_rules(format: str | None, rules: Mapping[str, str] | None = None) -> FormatRules:
    """The rules that settings `format` and `rules` of a part mean.

    Args:
      format: of layers that no pattern matches; None: `formats.DEFAULT`.
      rules: pattern to format name or `float32`.

    Raises:
      UserError: for an unknown format, or a pattern that is no text.

    Example:
      >>> rules = format_rules("e4m3fn", {"Dense_0": "float32", "Dense_*": "e5m2"})
      >>> [fmt and fmt.name for fmt in map(rules.of, ("Dense_0", "Dense_1", "head"))]
      [None, 'e5m2', 'e4m3fn']
    """
    if not isinstance(rules or {}, Mapping):
        raise UserError(f"rules map patterns to formats, such as {{'Dense_0': '{FLOAT32}'}}; got {rules!r}")
    for pattern, name in (rules or {}).items():
        if not isinstance(pattern, str) or not pattern or not isinstance(name, str):
            raise UserError(f"rules map texts to names of formats; got {pattern!r}: {name!r}")
    found = tuple((pattern, _format_or_float32(name)) for pattern, name in (rules or {}).items())
    return FormatRules(found, formats.get_format(format or formats.DEFAULT))


def _format_or_float32(name: str) -> Format | None:
    if name == FLOAT32:
        return None
    if name not in formats.FORMATS:
        known = [*formats.FORMATS, FLOAT32]
        raise UserError(f"unknown number format {name!r}; known are {', '.join(known)}{suggest(name, known)}")
    return formats.FORMATS[name]


def layer_of(name: str) -> str:
    """The path of the layer that a leaf of a message belongs to: its path name without the entry of the message that it
    stands in, and without its own name.

    >>> layer_of("params/blocks/0/Dense_1/kernel")
    'blocks/0/Dense_1'
    """
    return "/".join(name.split("/")[1:-1])


def layers_of(names: Iterable[str]) -> dict[str, str]:
    """The layer of each leaf of a message. A tree like the parameters that lies deeper in it, such as an optimizer's
    moments, has the layers of `params`.

    >>> layers_of(["params/Dense_0/kernel", "extra/optimizer/0/trace/Dense_0/kernel"])
    {'params/Dense_0/kernel': 'Dense_0', 'extra/optimizer/0/trace/Dense_0/kernel': 'Dense_0'}
    """
    names = list(names)
    own = {layer_of(name) for name in names if name.startswith("params/")}

    def layer(name: str) -> str:
        parts = name.split("/")
        tails = ("/".join(parts[i:-1]) for i in range(1, len(parts)))
        return next((tail for tail in tails if tail in own), layer_of(name))

    return {name: layer(name) for name in names}


def parse_rules(texts: Sequence[str], where: str) -> dict[str, str]:
    """Rules given as texts `pattern=format`, several in one text with commas.

    Raises UserError for another text, or a pattern given twice.

    >>> parse_rules(["Dense_0=float32,*/mlp/*=e5m2"], "config.format_rules")
    {'Dense_0': 'float32', '*/mlp/*': 'e5m2'}
    """
    rules: dict[str, str] = {}
    for text in (part.strip() for given in texts for part in str(given).split(",")):
        pattern, _, name = text.rpartition("=")
        if not pattern or not name:
            raise UserError(
                f"{where} takes PATTERN=FORMAT, such as Dense_0={FLOAT32}, several with commas; got {text!r}"
            )
        if pattern in rules:
            raise UserError(f"{where} has two rules for {pattern!r}; the first match wins, so leave one out")
        rules[pattern] = name
    return rules
