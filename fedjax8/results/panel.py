"""Parts of the report's panels: plotly figures as plain dicts, their axes, colors and numbers."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from fedjax8.results.look import COLORS

DASHES = ("solid", "dash", "dashdot", "dot")
"""Plotly's names of the styles in `figures.DASHES`."""

Figure = dict[str, Any]
"""`{"data": traces, "layout": layout}` as plotly reads it."""


class Panel(NamedTuple):
    """One picture, or one of several to choose from."""

    name: str
    title: str
    note: str
    figures: Mapping[str, Figure]
    """By the name it is chosen by; with one figure there is no choice."""
    absent: str = ""
    """Reason why there are no figures."""
    wide: bool = False


class Section(NamedTuple):
    """Panels under one heading."""

    title: str
    note: str
    panels: tuple[Panel, ...]


def style(index: int) -> tuple[str, str]:
    """(color, dashes) of a setting."""
    return COLORS[index % len(COLORS)], DASHES[index // len(COLORS) % len(DASHES)]


def axis(title: str, log: bool = False, **more: Any) -> dict[str, Any]:
    """An axis with a title and few labels."""
    return {"title": {"text": title}, "nticks": 7, **({"type": "log"} if log else {}), **more}


def metric_axis(title: str, percent: bool, log: bool = False) -> dict[str, Any]:
    """An axis of a metric, in percent or plain numbers."""
    form = "~%" if percent else "~g" if log else ""
    return axis(title, log, **({"tickformat": form} if form else {}))


def bytes_axis(title: str, log: bool = False) -> dict[str, Any]:
    """An axis of bytes, in kB, MB or GB; from 0 unless it is logarithmic."""
    return axis(title, log, tickformat="~s", ticksuffix="B") | {"nticks": 6, "rangemode": "tozero"}


def short(values: Iterable[float], digits: int = 5) -> list[float | int | None]:
    """Numbers with so many significant digits, whole ones as integers; None for numbers that are not finite."""
    rounded = (float(f"{v:.{digits}g}") if math.isfinite(v) else None for v in map(float, values))
    return [int(v) if v is not None and v.is_integer() else v for v in rounded]
