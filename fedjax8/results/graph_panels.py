"""Panels of graphs: workers on a circle and the edges of the first round, and their consensus distance."""

import html
import math
from collections.abc import Sequence
from typing import Any

from fedjax8.results.panel import Figure, Panel, axis
from fedjax8.results.runs import Setting

SIZE = 460
"""Pixels of a picture of a graph."""


def graphs(settings: Sequence[Setting]) -> Panel | None:
    """The graph of each setting whose workers are on one; None where there is none."""
    figures, notes = {}, []
    for setting in settings:
        facts = next((run.about["graph"] for run in setting.runs if run.about.get("graph")), None)
        if facts is not None:
            notes.append(f"{setting.label}: {_in_words(facts)}")
            if facts.get("edges"):
                figures[setting.label] = _graph(facts)
    if not notes:
        return None
    absent = "Graphs of many workers are not drawn: " + "; ".join(notes)
    note = "" if len(figures) == len(notes) else "; ".join(notes)  # each picture has its own
    return Panel("graph", "Who hears whom in the first round", note, figures, html.escape(absent), True)


def _in_words(facts: dict[str, Any]) -> str:
    """As `12 workers, 24 messages a round, up to 2 neighbors, disagreement shrinks to 0.91 or less a round`."""
    words = f"{facts['workers']:,} workers, {facts['messages']:,} messages a round, up to {facts['degree']} neighbors"
    changes = ", another graph in every round" if facts["changes"] else ""
    known = facts.get("disagreement")
    return words + changes + (f", disagreement shrinks to {known:.3g} or less a round" if known is not None else "")


def _graph(facts: dict[str, Any]) -> Figure:
    count = facts["workers"]
    at = [(math.sin(2 * math.pi * i / count), math.cos(2 * math.pi * i / count)) for i in range(count)]
    heard = {(a, b) for a, b in facts["edges"]}
    both = {(min(a, b), max(a, b)) for a, b in heard if (b, a) in heard}
    data = [
        _lines("both ways", "#56B4E9", sorted(both), at),
        _lines("one way", "#E69F00", sorted(edge for edge in heard if edge[::-1] not in heard), at),
    ]
    hears = [sum(b == i for _, b in heard) for i in range(count)]
    text = [f"worker {i} hears {n}, is heard by {sum(a == i for a, _ in heard)}" for i, n in enumerate(hears)]
    nodes = {
        "type": "scatter",
        "mode": "markers",
        "name": "workers",
        "x": [round(x, 4) for x, _ in at],
        "y": [round(y, 4) for _, y in at],
        "customdata": [[line] for line in text],
        "marker": {"size": max(5, min(14, 400 // count)), "color": "#0072B2"},
        "hovertemplate": "%{customdata[0]}<extra></extra>",
        "showlegend": False,
    }
    plain = axis("", showgrid=False, showline=False, zeroline=False, showticklabels=False, ticks="", range=[-1.1, 1.1])
    across = plain | {"scaleanchor": "y"}
    layout = {"xaxis": across, "yaxis": plain, "height": SIZE, "showlegend": True, "meta": _in_words(facts)}
    return {"data": [*(trace for trace in data if trace["x"]), nodes], "layout": layout}


def _lines(name: str, color: str, edges: Sequence[tuple[int, int]], at: Sequence[tuple[float, float]]) -> Figure:
    """Straight lines between workers, as one trace with gaps."""
    x: list[float | None] = []
    y: list[float | None] = []
    for a, b in edges:
        x += [round(at[a][0], 4), round(at[b][0], 4), None]
        y += [round(at[a][1], 4), round(at[b][1], 4), None]
    line = {"color": color, "width": 1 if len(edges) > 200 else 1.5}
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line, "hoverinfo": "skip"}
