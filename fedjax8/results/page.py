"""The report: one HTML page of tables and interactive plots, which fetches nothing and opens from disk.

Tables are plain HTML and can be read without scripts. Plots are drawn by plotly.js, which lies in the page packed by
gzip (1.9 MB instead of 4.8); plotly is an optional dependency: `pip install 'fedjax8[report]'`.
"""

import base64
import gzip
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError
from fedjax8.results.comparison import Comparison
from fedjax8.results.log import number
from fedjax8.results.look import COLORS
from fedjax8.results.panel import Panel, Section, style
from fedjax8.results.panels import sections
from fedjax8.results.report import about_whole_runs, explanation, shared_in_words, table
from fedjax8.results.runs import RunFolder, Setting
from fedjax8.results.tables import Lines, as_csv, as_latex

HERE = Path(__file__).parent
STROKES = {"solid": "", "dash": "6 3", "dashdot": "7 3 2 3", "dot": "2 2"}
"""Dashes in SVG by plotly's names."""
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
"""Content policy of the page: it may load nothing."""
BANDS = 12
"""Settings up to which bands of spread are shown at first."""
LISTED = 4
"""Warnings that are shown unfolded."""


def plotly_script() -> str:
    """The source of plotly.js, from the installed package. Raises `UserError` with the command that installs it."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise UserError("the report needs plotly: pip install 'fedjax8[report]'") from error
    return get_plotlyjs()


def html_page(found: Comparison, reload: float = 0.0) -> str:
    """The page of a comparison; with `reload` it loads itself anew after so many seconds.

    Raises `UserError` if plotly is missing.
    """
    library = base64.b64encode(gzip.compress(plotly_script().encode(), mtime=0)).decode()
    made = sections(found)
    settings = [result.setting for result in found.results]
    runs = sum(len(setting.runs) for setting in settings)
    reference = f"; the reference is {_text(settings[0].label)}" if len(settings) > 1 else ""
    shown = table(found)
    first = about_whole_runs(found)
    to_target = [i for i, c in enumerate(shown.kept) if c < first]
    whole = [0, *(i for i, c in enumerate(shown.kept) if c >= first)]
    shared = shared_in_words(shown.shared)
    data = {
        "lower": found.measure.lower,
        "tables": {"csv": _lines(as_csv(found)), "tex": _lines(as_latex(found))},
        "search": [search_text(setting) for setting in settings],
        "panels": {p.name: p.figures for section in made for p in section.panels if p.figures},
    }
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            *([f'<meta http-equiv="refresh" content="{reload:g}">'] if reload else []),
            '<link rel="icon" href="data:,">',
            f"<title>fedjax8: comparison of runs</title>\n<style>\n{_asset('page.css')}</style>\n</head>\n<body>",
            f"<header>\n<h1>Comparison of runs</h1>\n<p>{_count(len(settings), 'setting')}, {_count(runs, 'run')}"
            f"{reference}</p>\n</header>\n{_toolbar(settings)}\n<main>",
            _warnings(found.warnings),
            f'<section id="summary"><h2>To the same {_text(found.measure.words)}</h2>',
            _table([shown.columns[i] for i in to_target], [[row[i] for i in to_target] for row in shown.rows]),
            f'<p class="note">{_text(shared)}</p>' if shared else "",
            *(f'<p class="note">{_text(sentence)}</p>' for sentence in explanation(found)),
            "</section>",
            *(_section(section) for section in made),
            "<section><h2>Whole runs</h2>",
            _table([shown.columns[i] for i in whole], [[row[i] for i in whole] for row in shown.rows]),
            f"</section>\n{_configs(settings)}",
            f"<section><h2>Runs</h2>\n{_runs(settings)}</section>",
            "</main>\n<noscript>The plots need JavaScript.</noscript>",
            f'<script type="application/json" id="data">{_json(data)}</script>',
            f'<script type="text/plain" id="plotly">{library}</script>',
            f"<script>\n{_asset('page.js')}</script>\n</body>\n</html>\n",
        ]
    )


def search_text(setting: Setting) -> str:
    """Text that the filter searches: label, the fields that differ, folders, seeds, names, tags and notes, in lower
    case."""
    fields = [f"{name}={value}" for name, value in setting.fields.items()]
    runs = [part for run in setting.runs for part in (str(run.path), f"seed={run.seed}")]
    labels = [
        part
        for run in setting.runs
        for part in (run.labels.name, *(f"tag={'-'.join(tag.split())}" for tag in run.labels.tags), run.labels.note)
    ]
    return " ".join([setting.label, *fields, *runs, *dict.fromkeys(labels)]).lower()


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that no text inside can end the script element with."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _lines(lines: Lines) -> dict[str, Any]:
    return {"head": lines.head, "lines": lines.of_settings, "foot": lines.foot}


def _text(value: Any) -> str:
    return html.escape(str(value))


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def swatch(index: int) -> str:
    """A piece of a setting's line."""
    color, dash = style(index)
    color = "currentColor" if color == COLORS[-1] else color  # almost black, which a dark page would hide
    line = f'<line x1="1" y1="5" x2="23" y2="5" stroke="{color}" stroke-width="3" stroke-dasharray="{STROKES[dash]}"/>'
    return f'<svg class="swatch" width="24" height="10" aria-hidden="true">{line}</svg>'


def _toolbar(settings: Sequence[Setting]) -> str:
    chips = "".join(
        f'<button type="button" class="chip" data-setting="{i}" aria-pressed="true">{swatch(i)}'
        f"<span>{_text(setting.label)}</span></button>"
        for i, setting in enumerate(settings)
    )
    tags = dict.fromkeys(tag for setting in settings for run in setting.runs for tag in run.labels.tags)
    buttons = "".join(
        f'<button type="button" class="tag" data-tag="{_text(tag)}" aria-pressed="false">{_text(tag)}</button>'
        for tag in tags
    )
    return f"""<nav aria-label="What is shown">
<div class="tools">
<input type="search" id="filter" placeholder="Filter, such as fp8 -iid" spellcheck="false" aria-label="Filter"
 title="Shows settings whose label, differing fields, folders, seeds, tags or notes hold all words, and none after a -">
<label><input type="checkbox" id="spread"{" checked" * (len(settings) <= BANDS)}> spread over seeds</label>
<label><input type="checkbox" id="logarithmic"> logarithmic bytes</label>
<span class="exports">table of what is shown: <button type="button" data-table="csv">CSV</button>
<button type="button" data-table="tex">LaTeX</button></span>
<button type="button" id="theme" title="Light or dark page">◐</button>
<span id="shown" role="status"></span>
</div>
{f'<div class="tags">tags: {buttons}</div>' if tags else ""}
<div class="chips">{chips}</div>
</nav>"""


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = f'<ul class="warnings">{"".join(f"<li>{_text(w)}</li>" for w in warnings)}</ul>'
    if len(warnings) <= LISTED:
        return items
    return f"<details><summary>{_count(len(warnings), 'warning')}</summary>{items}</details>"


def _section(section: Section) -> str:
    note = f'<p class="note">{_text(section.note)}</p>' if section.note else ""
    panels = "\n".join(_figure(panel) for panel in section.panels)
    return f'<section><h2>{_text(section.title)}</h2>{note}\n<div class="panels">\n{panels}\n</div></section>'


def _figure(panel: Panel) -> str:
    kind = ' class="wide"' if panel.wide else ""
    note = f"<small>{_text(panel.note)}</small>" if panel.note else ""
    if not panel.figures:
        body = f'<p class="absent">{_text(panel.absent)}</p>'
    else:
        choices = "".join(f"<option>{_text(name)}</option>" for name in panel.figures)
        choice = f'<select aria-label="{_text(panel.title)}">{choices}</select>' if len(panel.figures) > 1 else ""
        height = max(figure["layout"].get("height", 0) for figure in panel.figures.values()) or 340
        fact = '<p class="fact"></p>' if any("meta" in f["layout"] for f in panel.figures.values()) else ""
        body = f'{choice}{fact}<div class="plot" data-panel="{panel.name}" style="height:{height}px"></div>'
    caption = f"<figcaption>{_text(panel.title)}{note}</figcaption>"
    return f'<figure id="{panel.name}"{kind}>{caption}<div>{body}</div></figure>'


def _table(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    """A row for each setting, which the filter hides with its setting."""
    lines = [
        _row([f"{swatch(i)}{_text(row[0])}", *map(_text, row[1:])], f' data-setting="{i}"')
        for i, row in enumerate(body)
    ]
    return _whole(header, lines)


def _row(cells: Iterable[str], attributes: str = "") -> str:
    first, *others = cells
    return f'<tr{attributes}><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _whole(header: Sequence[str], lines: Sequence[str], name: str = "") -> str:
    kind = f' class="{name}"' if name else ""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    rules = f"<thead><tr>{head}</tr></thead>\n<tbody>\n" + "\n".join(lines) + "\n</tbody>"
    return f'<div class="wide-table"><table{kind}>\n{rules}\n</table></div>'


def _configs(settings: Sequence[Setting]) -> str:
    """The fields that differ, a column for each setting; what all share, folded away."""
    shared = shared_fields(settings)
    parts = []
    if settings[0].fields:
        head = "".join(
            f'<th scope="col" data-setting="{i}">{swatch(i)}<br>{_text(s.label)}</th>' for i, s in enumerate(settings)
        )
        lines = []
        for field, reference in settings[0].fields.items():
            values = [setting.fields[field] for setting in settings]
            cells = "".join(
                f'<td data-setting="{i}"{_marked(value != reference)}>{_text(value)}</td>'
                for i, value in enumerate(values)
            )
            lines.append(f'<tr><th scope="row">{_text(field)}</th>{cells}</tr>')
        body = "\n".join(lines)
        table = f'<thead><tr><th scope="col">field</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>'
        parts.append('<p class="note">Shaded: another value than in the first setting.</p>')
        parts.append(f'<div class="wide-table"><table class="fields">\n{table}\n</table></div>')
    if shared:
        lines = [_row([_text(field), _text(value)]) for field, value in shared.items()]
        what = "that all share" if len(settings) > 1 else "of the config"
        parts.append(f"<details><summary>{_count(len(shared), 'field')} {what}</summary>")
        parts.append(f"{_whole(['field', 'value'], lines, 'fields')}</details>")
    return f'<section id="configs"><h2>Configs</h2>{"".join(parts)}</section>' if parts else ""


def _marked(differs: bool) -> str:
    return ' class="differs"' if differs else ""


def shared_fields(settings: Sequence[Setting]) -> Mapping[str, str]:
    """The config fields in which no two settings differ, as JSON writes them."""
    known = [run.config for setting in settings for run in setting.runs[:1] if run.config]
    if len(known) < len(settings):
        return {}
    return {
        field: value if isinstance(value, str) else json.dumps(value)
        for field, value in known[0].items()
        if all(field in config and config[field] == value for config in known)
    }


def _runs(settings: Sequence[Setting]) -> str:
    labels = [run.labels for setting in settings for run in setting.runs]
    words = [name for name in ("name", "tags", "note") if any(getattr(label, name) for label in labels)]
    lines = []
    for i, setting in enumerate(settings):
        for run in setting.runs:
            seed = "-" if run.seed is None else run.seed
            own = [", ".join(run.labels.tags) if name == "tags" else getattr(run.labels, name) for name in words]
            cells = [
                swatch(i) + _text(setting.label),
                *map(_text, (seed, run.rounds[-1], standing(run), *own, run.path)),
            ]
            lines.append(_row(cells, f' data-setting="{i}"'))
    return _whole(["setting", "seed", "rounds", "finished", *words, "folder"], lines, "runs")


def standing(run: RunFolder) -> str:
    """Whether a run is finished, and how far one is that is not: `no, 37%`."""
    if run.summary.get("finished"):
        return "yes, diverged" if run.summary.get("diverged") else "yes"
    rounds = number((run.config or {}).get("rounds"))
    return f"no, {100 * run.rounds[-1] / rounds:.0f}%" if rounds > 0 else "no"
