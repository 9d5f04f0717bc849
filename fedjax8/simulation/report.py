"""A comparison of runs put into words: the cells of its table, the sentences under it, and the HTML page."""

import html
from collections.abc import Sequence
from typing import Any

from fedjax8.errors import UserError
from fedjax8.simulation.comparison import Comparison, Result
from fedjax8.simulation.curves import Statistic
from fedjax8.simulation.figures import draw, draw_gain, inline_svg, require_matplotlib

COLUMNS = (
    "setting",
    "seeds",
    "accuracy a",
    "rounds to a",
    "reference rounds",
    "gain in rounds",
    "bytes to a",
    "reference bytes",
    "gain in bytes",
    "best accuracy",
    "final accuracy",
    "rounds",
    "bytes up",
    "bytes down",
    "saving",
    "seconds",
)
GAIN = 9
"""The first columns: what it takes to reach accuracy `a`; the others are about whole runs."""
PLOTS = (
    ("accuracy-bytes", "bytes", "test_accuracy", "Test accuracy against bytes sent"),
    ("gain-accuracy", "accuracy", "gain", "Gain in bytes against test accuracy"),
    ("accuracy-rounds", "rounds", "test_accuracy", "Test accuracy against rounds"),
    ("loss-rounds", "rounds", "test_loss", "Test loss against rounds"),
)
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 74rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .3rem } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap }
th { font-weight: 600; border-bottom-color: #888; white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 9rem }
p.note { color: #555; font-size: .9rem; max-width: 46rem } ul.warnings { color: #8a4b00; font-size: .9rem }
.plots { display: flex; flex-wrap: wrap; gap: 0 1.5rem } figure { margin: 1rem 0; max-width: 100% }
figcaption { font-weight: 600; font-size: .95rem } svg { max-width: 100%; height: auto }
"""


def rows(found: Comparison) -> list[list[str]]:
    """The table's cells: one row per setting, one column for each of `COLUMNS`."""
    return [_row(result) for result in found.results]


def _row(result: Result) -> list[str]:
    gain = result.gain
    part = f" ({gain.reached} of {gain.compared})" if 0 < gain.reached < gain.compared else ""
    missing = "not reached" if gain.compared and not gain.reached and gain.accuracy else "-"
    return [
        result.setting.label,
        str(len(result.setting.runs)),
        _plain(gain.accuracy, 4),
        _plain(gain.rounds, 0) + part if gain.reached else missing,
        _plain(gain.reference_rounds, 0),
        _times(gain.in_rounds),
        _bytes(gain.num_bytes) if gain.reached else missing,
        _bytes(gain.reference_bytes),
        _times(gain.in_bytes),
        _plain(result.best_accuracy, 4),
        _plain(result.final_accuracy, 4),
        _plain(result.rounds, 0),
        _bytes(result.uplink_bytes),
        _bytes(result.downlink_bytes),
        _times(result.saving),
        _plain(result.seconds, 1),
    ]


def _spread(spread: float, digits: int) -> str:
    """Nothing for one seed, or where all are alike as far as is shown."""
    text = f"{spread:.{digits}f}"
    return f" ± {text}" if float(text) > 0 else ""


def _times(value: Statistic | None) -> str:
    return "-" if value is None else f"{value.mean:.2f}{_spread(value.spread, 2)}x"


def _plain(value: Statistic | None, digits: int) -> str:
    if value is None:
        return "-"
    spread = _spread(value.spread, max(digits, 1))
    return f"{value.mean:.{max(digits, 1) if spread else digits}f}{spread}"


def _bytes(value: Statistic | None) -> str:
    """Three significant digits in the largest decimal unit that leaves at least 1."""
    if value is None:
        return "-"
    power = 0
    while power < 5 and value.mean >= 999.5 * 1000**power:
        power += 1
    unit = ("B", "kB", "MB", "GB", "TB", "PB")[power]
    mean = value.mean / 1000**power
    digits = 0 if power == 0 or mean >= 99.95 else 1 if mean >= 9.995 else 2
    return f"{mean:.{digits}f}{_spread(value.spread / 1000**power, digits)} {unit}"


def explanation(found: Comparison) -> list[str]:
    """Sentences under the table: which accuracy the settings are compared at, and what the columns mean."""
    reference = found.results[0].setting.label
    sentences = [
        "Accuracy a: the lower of the two best test accuracies of a run and the run of the reference with the same "
        "seed, so that both reach it (choose one accuracy for all with --target)."
        if found.target is None
        else f"Accuracy a: {found.target:.4g}, as given."
    ]
    sentences.append(
        f"Reference: {reference}. Rounds and bytes to a: the first evaluated round whose test accuracy reaches a, and "
        "the bytes of all clients up and down by then. Gain: what the reference needs over what the setting needs, "
        "mean over the seeds in common. Saving: bytes of the same exchanges in float32 over the bytes sent."
    )
    unpaired = [r.setting.label for r in found.results if r.gain.accuracy and not r.gain.paired]
    if unpaired:
        lowest = "a is the lowest best accuracy of all runs of both, and " if found.target is None else ""
        sentences.append(
            f"No seed in common with the reference: {'; '.join(unpaired)}. There {lowest}the gain is a ratio of means "
            "over seeds, without ±."
        )
    notes = []
    if found.smooth > 1:
        notes.append(f"Accuracies are means of {found.smooth} evaluations.")
    if any(len(r.setting.runs) > 1 for r in found.results):
        notes.append("±: sample standard deviation over seeds.")
    return [*sentences, " ".join(notes)] if notes else sentences


def html_page(found: Comparison) -> str:
    """One HTML page with the table, the plots and the configs; it fetches nothing.

    Raises `UserError` if matplotlib is missing.
    """
    settings = [result.setting for result in found.results]
    fields = list(settings[0].fields)
    cells = rows(found)
    to_accuracy, whole = range(GAIN), [0, *range(GAIN, len(COLUMNS))]
    differences = _table(["setting", *fields], [[s.label, *s.fields.values()] for s in settings])
    runs = _table(
        ["setting", "seed", "rounds", "finished", "folder"],
        [
            [
                s.label,
                "-" if r.seed is None else r.seed,
                r.rounds[-1],
                "yes" if r.summary.get("finished") else "no",
                r.path,
            ]
            for s in settings
            for r in s.runs
        ],
    )
    warnings = "".join(f"<li>{_text(w)}</li>" for w in found.warnings)
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>fedjax8: comparison of runs</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            "<h1>Comparison of runs</h1>",
            _table([COLUMNS[c] for c in to_accuracy], [[row[c] for c in to_accuracy] for row in cells]),
            *(f'<p class="note">{_text(sentence)}</p>' for sentence in explanation(found)),
            f'<ul class="warnings">{warnings}</ul>' if warnings else "",
            f'<div class="plots">{"".join(_figures(found))}</div>',
            "<h2>Whole runs</h2>",
            _table([COLUMNS[c] for c in whole], [[row[c] for c in whole] for row in cells]),
            f"<h2>What the settings differ in</h2>\n{differences}" if fields else "",
            f"<h2>Runs</h2>\n{runs}\n</body>\n</html>\n",
        ]
    )


def _figures(found: Comparison) -> list[str]:
    """The pictures of `PLOTS`, without those of what was not logged."""
    settings = [result.setting for result in found.results]
    figures = []
    for name, x, y, title in PLOTS:
        target = found.target if y == "test_accuracy" else None
        try:
            ax = draw_gain(found) if y == "gain" else draw(settings, x, y=y, smooth=found.smooth, target=target)
        except UserError:
            require_matplotlib()
            continue
        svg = inline_svg(ax, name, title)
        figures.append(f"<figure><figcaption>{_text(title)}</figcaption>{svg}</figure>")
    return figures


def _text(value: Any) -> str:
    return html.escape(str(value))


def _table(header: Sequence[str], body: Sequence[Sequence[Any]]) -> str:
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in header)
    lines = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in body)
    rules = f"<thead><tr>{head}</tr></thead>\n<tbody>\n{lines}\n</tbody>"
    return f'<div class="wide"><table>\n{rules}\n</table></div>'
