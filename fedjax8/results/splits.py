"""Panels of the clients: how many rows of which label they hold, and how well the final model serves them.

A layout's `meta` is a line that the page shows beside the picture.
"""

import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedjax8.directions import in_words as metric_in_words
from fedjax8.directions import is_percent
from fedjax8.results.fairness import in_words, values_by_client
from fedjax8.results.panel import Panel, axis, metric_axis, style
from fedjax8.results.runs import RunFolder, Setting

SPLITS = 12
"""Different splits to choose from, at most."""
POINTED = 12
"""Settings up to which every client is a dot beside the box of its setting."""
BOXED = 600
"""Clients in a box, at most; of more, quantiles as many."""
SHADES = [[0, "#ffffff"], [0.25, "#bfd9ea"], [0.6, "#2f7fb8"], [1, "#08306b"]]
"""White to dark blue: one hue, ordered in brightness."""
HELD_OUT = {"natural": "held-out", "dealt": "held-out (dealt by its labels)"}
"""Held-out rows of the accuracies in `clients.json`, in words."""
ABSENT = "No run wrote about.json, which has the clients' labels and sizes."


def splits(settings: Sequence[Setting]) -> dict[str, Mapping[str, Any]]:
    """The different splits of the runs by a name; of settings that share one, it is there once."""
    found: dict[str, tuple[RunFolder, Mapping[str, Any]]] = {}
    for run in (run for setting in settings for run in setting.runs):
        split = run.about.get("split")
        if split and "sizes" in split and "rows" in split and len(found) < SPLITS:
            found.setdefault(json.dumps(split, sort_keys=True), (run, split))
    named: dict[str, Mapping[str, Any]] = {}
    for run, split in found.values():
        name = split_name(run, split)
        named[name if name not in named else f"{name} ({len(named) + 1})"] = split
    return named


def split_name(run: RunFolder, split: Mapping[str, Any]) -> str:
    """As `dirichlet (concentration 0.3), 100 clients, seed 0`."""
    config = run.config or {}
    own = {f.removeprefix("partition."): v for f, v in config.items() if f.startswith("partition.")}
    name = own.pop("name", "split")
    settings = ", ".join(f"{field} {value}" for field, value in own.items())
    return f"{name}{f' ({settings})' if settings else ''}, {split['clients']:,} clients, seed {run.seed}"


def label_shares(settings: Sequence[Setting]) -> Panel:
    """A heat map for each split: clients across, labels up, the share of a client's rows as shade."""
    title, found = "Labels of clients", splits(settings)
    figures = {}
    for name, split in found.items():
        if not split.get("labels") or len(set(map(len, split["labels"]["counts"]))) != 1:
            continue
        counts = np.array(split["labels"]["counts"], np.float64)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        clients = [str(c) for c in split["labels"]["clients"]]
        trace = {
            "type": "heatmap",
            "x": clients,
            "z": [[round(float(v), 3) for v in row] for row in shares.T],
            "customdata": counts.T.astype(int).tolist(),
            "colorscale": SHADES,
            "zmin": 0,
            "zmax": 1,
            "xgap": 1 if len(clients) <= 60 else 0,
            "ygap": 1,
            "colorbar": {
                "title": {"text": "share of the client's rows", "side": "right"},
                "thickness": 10,
                "outlinewidth": 0,
            },
            "hovertemplate": "client %{x}, label %{y}<br>%{customdata} rows, %{z:.1%} of its own<extra></extra>",
        }
        layout = {
            "xaxis": axis("client", type="category", showgrid=False, nticks=12),
            "yaxis": axis("label", showgrid=False, dtick=1 if counts.shape[1] <= 12 else None),
            "meta": _skew(split) if split.get("skew") else "",
        }
        figures[name] = {"data": [trace], "layout": layout}
    absent = ABSENT if not found else "Rows have no single label each, or labels are too many to show."
    return Panel("labels", title, "stronger color: a larger share of the client's rows", figures, absent)


def client_sizes(settings: Sequence[Setting]) -> Panel:
    """Bars for each split: clients from the largest to the smallest."""
    figures = {}
    for name, split in splits(settings).items():
        sizes = sorted(split["sizes"], reverse=True)
        trace = {
            "type": "bar",
            "y": sizes,
            "marker": {"color": "#6b7785", "line": {"width": 0}},
            "hovertemplate": "%{y:,} rows<extra></extra>",
        }
        shown = "" if len(sizes) == split["clients"] else f", {len(sizes):,} of {split['clients']:,} shown"
        layout = {
            "bargap": 0.1 if len(sizes) <= 120 else 0,
            "xaxis": axis(f"clients, largest first{shown}", showticklabels=False, showgrid=False),
            "yaxis": axis("rows", rangemode="tozero"),
            "meta": f"{split['rows']:,} rows in all",
        }
        figures[name] = {"data": [trace], "layout": layout}
    return Panel("sizes", "Sizes of clients", "", figures, ABSENT)


def accuracy_by_client(settings: Sequence[Setting]) -> Panel:
    """A box for each setting over the clients of all its seeds."""
    data, rows, meta = [], set(), []
    every = [run.clients for setting in settings for run in setting.runs]
    metric = next((name for name, values in map(values_by_client, every) if values), "accuracy")
    for i, setting in enumerate(settings):
        found = [(run.clients, *values_by_client(run.clients)) for run in setting.runs]
        known = [clients for clients, name, numbers in found if numbers and name == metric]
        values = sorted(float(f"{v:.5g}") for clients in known for v in clients[metric])
        values = [values[k] for k in np.linspace(0, len(values) - 1, min(BOXED, len(values))).astype(int)]
        rows |= {HELD_OUT.get(clients.get("rows", ""), "own") for clients in known}
        if values:
            label, color = html.escape(setting.label), style(i)[0]
            meta.append(f"{setting.label}: {in_words(known)}")
            data.append(
                {
                    "type": "box",
                    "orientation": "h",
                    "name": label,
                    "meta": i,
                    "x": values,
                    "boxpoints": "all" if len(settings) <= POINTED else False,
                    "jitter": 0.6,
                    "pointpos": 0,
                    "marker": {"color": color, "size": 3, "opacity": 0.35},
                    "line": {"color": color, "width": 1.5},
                    "boxmean": True,
                    "fillcolor": "rgba(255,255,255,0)",
                    "hoverinfo": "x+name",
                }
            )
    layout = {
        "xaxis": metric_axis(f"{metric_in_words(metric)} of a client's own model on its own rows", is_percent(metric)),
        "yaxis": {"autorange": "reversed", "automargin": True, "showgrid": False},
        "height": 140 + 46 * len(data),
        "meta": " \u00b7 ".join(meta) if len(meta) <= POINTED else "",
    }
    note = f"each client's final model on its own {' and '.join(sorted(rows))} rows, all seeds; box: the middle half"
    absent = "No run was asked for it: python -m fedjax8.train --client_accuracy=100."
    figures = {"": {"data": data, "layout": layout}} if data else {}
    title = f"{metric_in_words(metric)[0].upper()}{metric_in_words(metric)[1:]} by client"
    return Panel("client-accuracy", title, note, figures, absent, wide=True)


def _skew(split: Mapping[str, Any]) -> str:
    skew = split["skew"]
    return (
        f"distance to the labels of all: Hellinger {skew['hellinger_mean']:.2f} on average, "
        f"{skew['hellinger_max']:.2f} at most; Jensen-Shannon {skew['js_mean']:.2f} bits"
    )
