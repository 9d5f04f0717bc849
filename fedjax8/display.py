"""Objects shown in a line, or in a notebook as a small table of facts."""

import html
from collections.abc import Mapping
from typing import Any, TypeVar

Kind = TypeVar("Kind", bound=type)

Facts = Mapping[str, Any]
"""Name to value, each shown as text; those that are None or empty are left out."""


def shows(kind: Kind) -> Kind:
    """The class, its objects shown by their method `_facts`: in a line by `repr`, as a table in a notebook."""
    kind.__repr__ = lambda self: in_a_line(kind.__name__, self._facts())  # type: ignore[misc,method-assign,assignment]
    kind._repr_html_ = lambda self: as_html(kind.__name__, self._facts())  # type: ignore[attr-defined]
    return kind


def shown(facts: Facts) -> dict[str, str]:
    """Facts as texts, whole numbers with thousands separated."""
    texts = {name: f"{v:,}" if isinstance(v, int) and not isinstance(v, bool) else str(v) for name, v in facts.items()}
    return {name: text for name, text in texts.items() if text not in ("", "None")}


def in_a_line(title: str, facts: Facts) -> str:
    """A title and facts, such as those of a ledger.

    >>> in_a_line("Ledger", {"uplink_bytes": 1200, "saving": "3.98", "note": None})
    'Ledger(uplink bytes 1,200, saving 3.98)'
    """
    return f"{title}({', '.join(f'{name} {text}'.strip() for name, text in shown(_spaced(facts)).items())})"


def as_html(title: str, facts: Facts) -> str:
    """The same as a table, every text escaped."""
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(name)}</th>"
        f"<td style='text-align:left'>{html.escape(text)}</td></tr>"
        for name, text in shown(_spaced(facts)).items()
    )
    return f"<table><caption style='text-align:left'><b>{html.escape(title)}</b></caption>{rows}</table>"


def _spaced(facts: Facts) -> dict[str, Any]:
    return {name.replace("_", " "): value for name, value in facts.items()}


def columns_of(columns: Mapping[str, Any]) -> str:
    """Rows and columns of arrays `[N, ...]`: `60 rows of x uint8 [8, 8, 1], y int32`."""
    if not columns:
        return "none"
    rows = len(next(iter(columns.values())))
    each = [f"{name} {c.dtype}{f' {list(c.shape[1:])}' if c.shape[1:] else ''}" for name, c in columns.items()]
    return f"{rows:,} rows of {', '.join(each)}"


def name_of(function: Any) -> str:
    """The name of the function that made a function, or its own; of private ones the module's; of objects the class."""
    name = getattr(function, "__qualname__", None) or getattr(function, "__name__", None) or type(function).__name__
    first = str(name).partition(".<locals>")[0]
    return str(function.__module__).rpartition(".")[2] if first.startswith("_") else first
