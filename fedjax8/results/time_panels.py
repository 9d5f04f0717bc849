"""Panels of simulated time: a timeline of a run's first rounds, waiting, and the staleness of contributions."""

import html
from collections.abc import Sequence
from typing import Any

from fedjax8.results.durations import readable_duration, unit_of
from fedjax8.results.panel import Figure, Panel, axis, short, style
from fedjax8.results.runs import RunFolder, Setting

PHASES = (
    ("receives", "#56B4E9"),
    ("computes", "#009E73"),
    ("sends", "#E69F00"),
    ("waits", "#d9dde1"),
    ("is late", "#D55E00"),
    ("is not waited for", "#b9a3c9"),
)
"""What a client does, and its color."""
ROW = 9
"""Pixels of a client in a timeline, at least."""


def timelines(settings: Sequence[Setting]) -> Panel:
    """The first rounds of each setting that has a timeline: clients upward, time across, what they do as colors."""
    title = "Timeline of the first rounds"
    figures = {}
    for setting in settings:
        run = next((run for run in setting.runs if run.about.get("timeline")), None)
        if run is not None:
            figures[setting.label] = _timeline(run)
    note = (
        "a row for each place in the round, the last client on top; by the sizes of messages before the run, without "
        "dropouts"
    )
    absent = "No run wrote a timeline: of runs with a clock whose rounds wait for their clients, about.json has one."
    return Panel("timeline", title, note, figures, absent, True)


def staleness(settings: Sequence[Setting]) -> Panel | None:
    """The share of contributions of each age; None where no run tells it."""
    data = []
    for i, setting in enumerate(settings):
        counts: dict[int, int] = {}
        for run in setting.runs:
            for age, count in run.staleness.items():
                counts[age] = counts.get(age, 0) + count
        whole = sum(counts.values())
        if whole:
            ages = sorted(counts)
            mean = sum(age * counts[age] for age in ages) / whole
            data.append(
                {
                    "type": "bar",
                    "name": html.escape(setting.label),
                    "meta": i,
                    "x": ages,
                    "y": short(counts[age] / whole for age in ages),
                    "customdata": [[counts[age]] for age in ages],
                    "marker": {"color": style(i)[0], "line": {"width": 0}},
                    "hovertemplate": "<b>%{fullData.name}</b><br>age %{x}: %{y:.1%}, %{customdata[0]} contributions"
                    f"<br>mean age {mean:.2f}<extra></extra>",
                }
            )
    if not data:
        return None
    across = axis("age: server steps since the client received its model", rangemode="tozero", tickformat="d")
    layout = {"barmode": "group", "xaxis": across, "yaxis": axis("share of contributions", tickformat="~%")}
    note = "contributions of all rounds and seeds"
    return Panel("staleness", "Staleness of contributions", note, {"": {"data": data, "layout": layout}})


def _timeline(run: RunFolder) -> Figure:
    """One round after another on one axis of time; a trace for each of `PHASES`."""
    rounds = run.about["timeline"]
    size, unit = unit_of(sum(line["seconds"] for line in rounds) / 2)
    bars: dict[str, list[tuple[float, float, int, str]]] = {name: [] for name, _ in PHASES}
    begin, ends = 0.0, []
    for line in rounds:
        for place, client in enumerate(zip(*(line[name] for name in MOMENTS), strict=False)):
            number, received, trained, sent, fate = client
            text = f"round {line['round']}, client {number}"
            for name, start, end in _phases(received, trained, sent, fate, line["seconds"]):
                if end > start:
                    bars[name].append((begin + start, end - start, place, f"{text} {name}"))
        begin += line["seconds"]
        ends.append(begin)
    data = [_bars(name, color, bars[name], size) for name, color in PHASES if bars[name]]
    guide: Figure = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "#333", "width": 1.5}}
    shapes = [guide | {"x0": end / size, "x1": end / size} for end in ends]
    most = max((len(line["clients"]) for line in rounds), default=0)
    return {
        "data": data,
        "layout": {
            "barmode": "overlay",
            "bargap": 0.15,
            "xaxis": axis(f"simulated time ({unit})", rangemode="tozero"),
            "yaxis": axis("clients", showticklabels=False, showgrid=False, ticks=""),
            "shapes": shapes,
            "showlegend": True,
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
            "height": 160 + max(ROW * most, 120),
            "meta": "; ".join(_in_words(line) for line in rounds),
        },
    }


MOMENTS = ("clients", "received", "trained", "sent", "fates")


def _in_words(line: dict[str, Any]) -> str:
    shown = len(line["clients"])
    of_all = f", {shown} of {line['asked']:,} clients shown" if shown < line["asked"] else ""
    return f"round {line['round']}: {readable_duration(line['seconds'])}{of_all}"


def _phases(received: float, trained: float, sent: float, fate: str, end: float) -> list[tuple[str, float, float]]:
    """(name of `PHASES`, start, end) of what a client does in a round that ends at `end`."""
    if fate == "lost":
        return [("receives", 0.0, min(received, end)), ("is not waited for", received, end)]
    done = [("receives", 0.0, received), ("computes", received, trained), ("sends", trained, sent)]
    kept = [(name, start, min(stop, end)) for name, start, stop in done]
    if fate == "late":
        name, start, stop = next(phase for phase in reversed(kept) if phase[2] > phase[1])
        return [*(phase for phase in kept if phase[0] != name), ("is late", start, stop)]
    return [*kept, ("waits", sent, end)]


def _bars(name: str, color: str, bars: Sequence[tuple[float, float, int, str]], size: float) -> Figure:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "base": short((start / size for start, _, _, _ in bars), 6),
        "x": short((length / size for _, length, _, _ in bars), 6),
        "y": [place for _, _, place, _ in bars],
        "width": 0.85,
        "customdata": [[f"{text} for {readable_duration(length)}"] for _, length, _, text in bars],
        "marker": {"color": color, "line": {"width": 0}},
        "hovertemplate": "%{customdata[0]}<extra></extra>",
    }
