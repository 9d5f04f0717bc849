"""The panels of the report as plotly figures: plain dicts, made without plotly, drawn by `page.js` in a browser.

A trace of setting i has `meta` i, by which the page shows and hides it; its color and dashes are the same in all
panels. A line's `customdata` holds its standard deviation over seeds, of which the page draws the band, and the round.
Empty panels give the reason. NumPy and the standard library only.
"""

import html
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fedjax8.directions import in_words, is_percent
from fedjax8.results.comparison import Comparison, Result, gain_curves, not_reached
from fedjax8.results.curves import Curve, curve, statistic, total_bytes
from fedjax8.results.durations import unit_of
from fedjax8.results.figures import UNRESOLVED
from fedjax8.results.graph_panels import graphs
from fedjax8.results.log import OTHERS
from fedjax8.results.measure import Measure
from fedjax8.results.panel import Figure, Panel, Section, axis, bytes_axis, metric_axis, short, style
from fedjax8.results.runs import Setting
from fedjax8.results.splits import accuracy_by_client, client_sizes, label_shares
from fedjax8.results.time_panels import staleness, timelines

POINTS = 60_000
"""Points of all lines together: about 2 MB of page."""
LOG_FROM = 4.0
"""Ratio of the largest to the smallest end of a line from which an axis is logarithmic at first."""
LEAST, MOST = 24, 240
"""Points of one line."""
MARKED = 12
"""A line of so few points is hard to see without markers."""
ENCODING = {
    "clipped_fraction": ("Clipped values", "linear", axis("share of values", rangemode="tozero", tickformat="~%")),
    "quantization_error": ("Quantization error", "log", axis("squared error / squared norm")),
}
"""Codecs' measures: title, kind of axis and axis, by the end of the name."""
WHOLE = "<b>whole message</b>"
ELSEWHERE = ("test_loss", "uplink_bytes", "downlink_bytes", *OTHERS, "waiting_share", "consensus_distance")
"""Metrics that have panels of their own."""


def sections(found: Comparison) -> tuple[Section, ...]:
    """All panels of a comparison, in the order of the page."""
    settings, measure = [result.setting for result in found.results], found.measure
    metrics = dict.fromkeys(name for s in settings for run in s.runs for name in run.metrics)
    draw = LineCharts(
        settings, found.smooth, measure, most=int(np.clip(POINTS / (len(settings) * (len(metrics) + 6)), LEAST, MOST))
    )
    # The panels show what is reported.
    target, title = found.target if measure.chooses == measure.reports else None, measure.title
    absent = f"No run has a {measure.reports}."
    of_metric = [
        _panel(
            "metric-bytes",
            f"{title} against bytes sent",
            "up and down, all clients",
            draw("bytes", target=target),
            absent,
        ),
        _front(found),
        _panel("metric-rounds", f"{title} against rounds", "", draw("rounds", target=target), absent),
        _panel(
            "metric-seconds",
            f"{title} against seconds",
            "time spent in rounds, without compilation where it is known",
            draw("seconds", target=target),
            "No run logged round_seconds.",
        ),
        _gain(found, draw),
    ]
    if found.clocks:
        absent = "No setting has a clock in all of its runs."
        against = f"{title} against simulated time"
        of_metric.insert(2, _panel("metric-time", against, "", draw("simulated_seconds", target=target), absent))
    if found.timed:
        of_metric.append(_gain(found, draw, "seconds"))
    if measure.reports != "test_loss":
        loss = draw("rounds", "test_loss")
        of_metric.append(_panel("loss-rounds", "Test loss against rounds", "", loss, "No run logged a test_loss."))
    network = (_directions(found.results), *(_layers(settings, way) for way in _ways(settings)))
    names = sorted(metrics, key=lambda name: (name != "train_loss", name))  # the most wanted comes first
    others = {
        name: draw("rounds", name)
        for name in names
        if name not in (*ELSEWHERE, measure.reports) and not _encoding(name)
    }
    shown = {name: figure for name, figure in others.items() if figure}
    more = Panel("metrics", "Any metric", "means over seeds, ± one deviation", shown, "Nothing else was logged.", True)
    clients = (label_shares(settings), client_sizes(settings), accuracy_by_client(settings))
    return (
        Section(title, "Lines are means over seeds, bands one standard deviation to each side.", tuple(of_metric)),
        Section("Bytes on the network", "Read off encoded messages; means over seeds.", network),
        *_time(found, draw),
        *_graphs(settings, draw),
        Section("Effect of encoding on values", "", _encodings(metrics, draw)),
        Section("Clients", "", clients),
        Section("Other metrics", "", (more,)),
    )


def _graphs(settings: Sequence[Setting], draw: "LineCharts") -> tuple[Section, ...]:
    """The section of graphs, where some run's clients are workers on one."""
    drawn = graphs(settings)
    if drawn is None:
        return ()
    distance = draw("rounds", "consensus_distance")
    words = "root mean square distance of the workers' models from their mean"
    return (Section("Graph", "", (drawn, _panel("consensus", "Consensus distance", words, distance, "Not logged."))),)


def _time(found: Comparison, draw: "LineCharts") -> tuple[Section, ...]:
    """The section of simulated time, where some run has a clock."""
    if not found.clocks:
        return ()
    settings = [result.setting for result in found.results]
    waiting = draw("rounds", "waiting_share")
    old = staleness(settings)
    panels = [
        timelines(settings),
        _panel("waiting", "Waiting", "share of a round's time that clients wait", waiting, "No run logged it."),
        *([old] if old else []),
    ]
    return (Section("Simulated time", "By the runs' system models of devices and links.", tuple(panels)),)


class LineCharts:
    """Charts of a metric of all settings against bytes, rounds, real or simulated seconds; None where it is absent."""

    def __init__(self, settings: Sequence[Setting], smooth: int, measure: Measure, most: int):
        self._settings, self._smooth, self._measure, self._most = settings, smooth, measure, most

    def __call__(
        self, x: str, y: str | None = None, target: float | None = None, kind: str = "linear"
    ) -> Figure | None:
        """The metric `y` (None: the one compared) against `x`, with a guide at `target`; `kind` is that of the axis
        upward."""
        y = y or self._measure.reports
        smooth = self._smooth if y == self._measure.reports else 1
        found = {i: curve(s, x, y, smooth) for i, s in enumerate(self._settings)}
        curves = {i: c for i, c in found.items() if c is not None}
        if not curves:
            return None
        by_round = {i: curve(self._settings[i], "rounds", y, smooth) for i in curves}
        rounds = {i: c.x for i, c in by_round.items() if c is not None}
        size, unit = 1.0, ""
        if x == "simulated_seconds":
            size, unit = unit_of(max(float(c.x[-1]) for c in curves.values()) / 2)
            curves = {i: c._replace(x=c.x / size) for i, c in curves.items()}
        at = {"bytes": "%{x:.3s}B, ", "rounds": "", "seconds": "%{x:,.1f} s, "}.get(x, f"%{{x:.3~g}} {unit}, ")
        form = ".2%" if is_percent(y) else ".4f" if y == "test_loss" else ".4~g"
        data = [self.line(i, c, rounds[i], form, at + "round %{customdata[1]}") for i, c in curves.items()]
        across = axis(f"simulated time ({unit})" if unit else x, rangemode="tozero")
        if x == "bytes":
            across = bytes_axis("bytes sent", _spans([c.x[-1] for c in curves.values()]))
        log = kind == "log" and all(v > 0 for trace in data for v in trace["y"])
        up = metric_axis(in_words(y), is_percent(y), log)
        lines = [] if target is None else [{"y0": target, "y1": target, "x0": 0, "x1": 1, "xref": "paper"}]
        guides = [{"type": "line", "line": {"color": "#888", "width": 1, "dash": "dot"}} | line for line in lines]
        return {"data": data, "layout": {"xaxis": across, "yaxis": up, "shapes": guides}}

    def line(self, index: int, found: Curve, rounds: np.ndarray, form: str, at: str, shape: str = "linear") -> Figure:
        """The trace of one setting, with as many points as a line may have."""
        shown = np.unique(np.linspace(0, len(found.x) - 1, min(self._most, len(found.x))).astype(int))
        color, dash = style(index)
        spread = found.spread[shown]
        beside = f" ± %{{customdata[0]:{form}}}" if np.isfinite(spread).any() else ""
        return {
            "type": "scatter",
            "mode": "lines+markers" if len(shown) <= MARKED and shape == "linear" else "lines",
            "name": html.escape(self._settings[index].label),
            "meta": index,
            "x": short(found.x[shown], 6),
            "y": short(found.mean[shown]),
            "customdata": [list(pair) for pair in zip(short(spread, 4), short(rounds[shown], 9), strict=True)],
            "line": {"color": color, "dash": dash, "width": 2, "shape": shape},
            "marker": {"size": 5},
            "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{y:{form}}}{beside}<br>{at}<extra></extra>",
        }


def _spans(values: Iterable[float]) -> bool:
    positive = [float(v) for v in values if v > 0]
    return bool(positive) and max(positive) / min(positive) >= LOG_FROM


def _panel(name: str, title: str, note: str, figure: Figure | None, absent: str) -> Panel:
    return Panel(name, title, note, {"": figure} if figure else {}, absent)


def _front(found: Comparison) -> Panel:
    """The metric at the end against all bytes. The page finds the Pareto front of the points shown."""
    results, measure = found.results, found.measure
    title, form = f"{measure.title} against cost", ".2%" if measure.percent else ".4~g"
    points = []
    for i, result in enumerate(results):
        spent = statistic(float(total_bytes(r)[-1]) for r in result.setting.runs)
        if result.final is not None and spent is not None and spent.mean > 0:
            points.append((i, result, spent, result.final))
    if len(points) < 2:
        return Panel("front", title, "", {}, "A Pareto front needs two settings or more.")
    data = []
    for i, result, spent, reached in points:
        (mean, deviation, num_bytes), color = short((reached.mean, reached.spread, spent.mean)), style(i)[0]
        beside = f" ± {deviation:{form.replace('~', '')}}" if deviation else ""
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(result.setting.label),
                "meta": i,
                "x": [num_bytes],
                "y": [mean],
                "error_y": {"type": "data", "array": [deviation], "thickness": 1.2, "width": 3, "color": color},
                "marker": {"size": 11, "color": color, "line": {"color": color, "width": 2}},
                "hovertemplate": f"<b>%{{fullData.name}}</b><br>%{{y:{form}}}{beside}<br>%{{x:.3s}}B<extra></extra>",
            }
        )
        if not deviation:  # one seed, or all alike
            del data[-1]["error_y"]
    front: Figure = {"type": "scatter", "mode": "lines", "name": "front", "x": [], "y": [], "hoverinfo": "skip"}
    front |= {"line": {"color": "#999", "width": 1.5, "shape": "hv"}}
    across = bytes_axis("bytes of the whole run", _spans([p[2].mean for p in points]))
    layout = {"xaxis": across, "yaxis": metric_axis(f"final {measure.reported_in_words}", measure.percent)}
    note = "filled: on the Pareto front, no other setting shown is as good for as few bytes"
    return Panel("front", title, note, {"": {"data": [front, *data], "layout": layout}})


def _gain(found: Comparison, draw: LineCharts, cost: str = "num_bytes") -> Panel:
    measure = found.measure
    name, what = ("gain-time", "time") if cost == "seconds" else ("gain", "bytes")
    title, form = f"Gain in {what} against {measure.words}", ".2%" if measure.percent else ".4~g"
    reference = found.results[0]
    evaluated = [len(run.rounds) for r in found.results for run in r.pairing.setting]
    skip = min(UNRESOLVED, min(evaluated, default=0) // 10)
    curves = gain_curves(found, skip, cost)
    beyond = not_reached(found)
    missing = f"not reached, not within {measure.margin_in_words(found.margin)} of its best: {'; '.join(beyond)}"
    if not curves:
        why = f"Gain over {reference.setting.label}: {missing}." if beyond else ""
        return Panel(name, title, "", {}, why or "A gain needs two settings that have been evaluated.")
    data = []
    for i, c in curves.items():
        data.append(draw.line(i, c, c.x, ".2f", f"at {measure.words} %{{x:{form}}}", shape="vh"))
    line: Figure = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1}
    shapes = [line | {"line": {"color": style(0)[0], "width": 2}}]
    log = _spans([1.0, *(g for c in curves.values() for g in c.mean)])
    up = axis(f"{what} of the reference / {what}", log=log, tickformat="~g")
    across = metric_axis(measure.chosen_in_words, measure.percent)
    across |= {"autorange": "reversed"} if measure.lower else {}
    layout = {"xaxis": across, "yaxis": up, "shapes": shapes}
    note = f"over {reference.setting.label}, the line at 1" + (f"; {missing}" if beyond else "")
    return Panel(name, title, note, {"": {"data": data, "layout": layout}})


def _directions(results: Sequence[Result]) -> Panel:
    data = []
    for i, result in enumerate(results):
        label, color = html.escape(result.setting.label), style(i)[0]
        ways = [("up", result.uplink_bytes, 1.0), ("down", result.downlink_bytes, 0.45)]
        ways += [(way.removesuffix("_bytes"), spent, 0.7) for way, spent in result.other_bytes.items()]
        for way, spent, opacity in ways:
            if spent is not None:
                data.append(
                    {
                        "type": "bar",
                        "orientation": "h",
                        "name": label,
                        "meta": i,
                        "x": short([spent.mean], 6),
                        "y": [label],
                        "marker": {"color": color, "opacity": opacity, "line": {"width": 0}},
                        "hovertemplate": f"<b>{_literal(label)}</b><br>{way} %{{x:.3s}}B<extra></extra>",
                    }
                )
        if result.saving is not None and result.uplink_bytes:
            unencoded = result.saving.mean * sum(spent.mean for _, spent, _ in ways if spent is not None)
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": label,
                    "meta": i,
                    "x": short([unencoded], 6),
                    "y": [label],
                    "marker": {"symbol": "line-ns", "size": 16, "line": {"width": 2, "color": "#333"}},
                    "hovertemplate": f"<b>{_literal(label)}</b><br>in float32 %{{x:.3s}}B<extra></extra>",
                }
            )
    layout = {
        "barmode": "stack",
        "xaxis": bytes_axis("bytes of the whole run, all clients"),
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "height": 110 + 26 * len(results),
    }
    note = "dark: up, light: down; the upright stroke: the same messages in float32"
    return Panel("directions", "Bytes by direction", note, {"": {"data": data, "layout": layout}}, "", True)


def _literal(text: str) -> str:
    """Text in a hover template that is not read as a placeholder."""
    return text.replace("%{", "%&#123;")


def layer(path: str) -> str:
    """The layer that a leaf belongs to: its path without its own name and without the entry of the message."""
    parts = path.removeprefix("params/").removeprefix("update/").split("/")
    return "/".join(parts[:-1]) or parts[-1]


LAYERS = {
    "up": "One message up, by layer",
    "down": "One message down, by layer",
    "peer": "One message between clients, by layer",
    "edge": "One message of an edge server, by layer",
}


def _ways(settings: Sequence[Setting]) -> list[str]:
    """The directions in which any run sends a message; up and down also where no run says so, or where one is used."""
    there = {
        message["direction"]
        for setting in settings
        for run in setting.runs
        for message in run.about.get("messages", [])
    }
    star = not there or bool(there & {"up", "down"})
    return [way for way in LAYERS if way in there or (star and way in ("up", "down"))]


def _layers(settings: Sequence[Setting], way: str) -> Panel:
    """Bytes of one message by layer: a dot for each setting, beside each other in a row."""
    title = LAYERS[way]
    sent: dict[int, dict[str, int]] = {}
    for i, setting in enumerate(settings):
        messages = next((run.about["messages"] for run in setting.runs if run.about.get("messages")), [])
        for message in messages:
            if message["direction"] != way:
                continue
            prefix = "" if message["name"] == "model" else f"{html.escape(message['name'])}: "
            rows = sent.setdefault(i, {})
            rows[prefix + WHOLE] = message["message_bytes"]
            for path, num_bytes in message["leaves"].items():
                name = prefix + html.escape(layer(path))
                rows[name] = rows.get(name, 0) + num_bytes
    if not sent:
        return Panel(f"layers-{way}", title, "", {}, "No run wrote about.json, which lists the arrays of messages.")
    names = list(dict.fromkeys(name for rows in sent.values() for name in rows))
    data = []
    for place, (i, rows) in enumerate(sent.items()):
        offset = 0.0 if len(sent) == 1 else 0.6 * (place / (len(sent) - 1) - 0.5)
        kept = [(k, rows[name], name) for k, name in enumerate(names) if rows.get(name)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": html.escape(settings[i].label),
                "meta": i,
                "x": [num_bytes for _, num_bytes, _ in kept],
                "y": short([k + offset for k, _, _ in kept]),
                "customdata": [[name] for _, _, name in kept],
                "marker": {"size": 8, "color": style(i)[0]},
                "hovertemplate": "<b>%{fullData.name}</b><br>%{customdata[0]}: %{x:.3s}B<extra></extra>",
            }
        )
    up = {"tickvals": list(range(len(names))), "ticktext": names, "automargin": True}
    up |= {"range": [len(names) - 0.4, -0.6], "showgrid": True}
    across = bytes_axis("bytes of one message", log=True)
    layout = {"xaxis": across, "yaxis": up, "height": max(260, 110 + 26 * len(names))}
    return Panel(f"layers-{way}", title, "logarithmic axis", {"": {"data": data, "layout": layout}})


def _encoding(name: str) -> str:
    return next((end for end in ENCODING if name.endswith(f"link_{end}") or name.endswith(f"_{end}")), "")


def _encodings(metrics: Iterable[str], draw: Callable[..., Figure | None]) -> tuple[Panel, ...]:
    """A panel for each measure that codecs logged, of each kind of message."""
    panels = []
    for end, (title, kind, up) in ENCODING.items():
        for name in sorted(name for name in metrics if _encoding(name) == end):
            figure = draw("rounds", name, kind=kind)
            if not figure:
                continue
            figure["layout"]["yaxis"] |= up
            nothing = not any(any(trace["y"]) for trace in figure["data"])
            figures, absent = ({}, f"{title}: none, in any round.") if nothing else ({"": figure}, "")
            which = name.removesuffix(f"_{end}").replace("_", " ")
            panels.append(Panel(name.replace("_", "-"), f"{title}, {which}", "", figures, absent))
    absent = (
        "No run logged clipped values or quantization errors: nothing was encoded, or by codecs that measure nothing."
    )
    return tuple(panels) or (Panel("encoding", "Clipped values and quantization error", "", {}, absent),)
