"""Pictures of runs: any logged metric against bytes, rounds or seconds, real and simulated; and gains.

Drawn on matplotlib's object interface: no window, no display and no global state, so it works in a notebook,
a batch job and a thread. matplotlib is an optional dependency: `pip install 'fedjax8[plot]'`.
"""

import contextlib
import functools
import io
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedjax8.directions import in_words, is_percent, readable
from fedjax8.errors import UserError
from fedjax8.results.comparison import Comparison, gain_curves, not_reached
from fedjax8.results.curves import Curve, curve
from fedjax8.results.look import COLORS, GRID, LINES, require_matplotlib
from fedjax8.results.measure import measure_of
from fedjax8.results.runs import Setting, read_settings
from fedjax8.results.time_axis import of_durations

DASHES = ("-", "--", "-.", ":")
"""Line styles of the first seven settings, the next seven and so on."""
LOG_FROM = 8.0
"""Ratio of the largest to the smallest total of bytes from which the byte axis is logarithmic by default."""
LEGEND_INSIDE = 7
"""Most lines of a legend inside the axes."""
NAME_LENGTH = 24
"""Longest name of a setting beside an axis, in characters."""
UNRESOLVED = 4
"""Evaluations within which the round that reaches a value is known to a quarter at best, so that the gain there
depends on the evaluation period: such values are left out of curves, but for no more than a tenth of a run."""
LEGEND_WIDTH = 150
"""Characters in a line of a legend below two panels."""
GUIDE: dict[str, Any] = {"color": LINES, "linewidth": 0.9, "linestyle": (0, (4, 3)), "zorder": 1}
"""Line style of a target."""
AXES = {
    "bytes": "bytes sent, up and down",
    "rounds": "rounds",
    "seconds": "seconds",
    "simulated_seconds": "simulated time",
}
WIDE = ("bytes", "simulated_seconds")
"""Axes that are logarithmic where settings differ much."""
GAINS = {"num_bytes": "gain in bytes", "seconds": "gain in time"}
KINDS = ("png", "svg", "pdf")
"""Kinds of pictures, by the ending of the file's name."""
TICKS = 6
"""Most labels of an axis."""

Entry = tuple[str, Any]
"""Label and line of one entry of a legend."""


def plot_runs(
    dirs: str | os.PathLike | Iterable[str | os.PathLike],
    x: str = "bytes",
    ax: Any = None,
    *,
    y: str | None = None,
    smooth: int = 1,
    logx: bool | None = None,
) -> Any:
    """Matplotlib axes with a curve per setting: its mean over seeds, and a band of one standard deviation.

    `dirs` are run folders, `x` is `bytes`, `rounds`, `seconds` or `simulated_seconds`, `y` a key of
    `metrics.jsonl`, or a metric's name such as `mae`; by default it is the first metric of the runs' task on test rows.
    `smooth` averages each value with those before it, `smooth` in all. `logx=None` takes a logarithmic axis for bytes
    and simulated seconds where settings differ much in them. Without `ax` a figure is made:
    `plot_runs("runs/a").figure.savefig("a.png")`.

    Raises `UserError` for unreadable runs, an unknown `x`, a `y` that no run logged, or if matplotlib is
    missing.
    """
    paths = [dirs] if isinstance(dirs, str | os.PathLike) else list(dirs)
    settings, _ = read_settings(paths)
    axes = draw(settings, x, ax, y=y, smooth=smooth, logx=logx)
    if ax is None:
        axes._repr_png_ = functools.partial(_png, axes.figure)  # a notebook shows the picture
    return axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def draw(
    settings: Sequence[Setting],
    x: str = "bytes",
    ax: Any = None,
    *,
    y: str | None = None,
    smooth: int = 1,
    logx: bool | None = None,
    target: float | None = None,
) -> Any:
    """As `plot_runs`, from settings already read, with a line at `target` if given."""
    require_matplotlib()
    given, ax = ax is not None, _new_axes(1)[0] if ax is None else ax
    _legend(ax, _draw_metric(ax, settings, x, key_of(settings, y), smooth, logx, target), widen=not given)
    return ax


def key_of(settings: Sequence[Setting], y: str | None) -> str:
    """The key of `metrics.jsonl` that is asked for: a metric's name is that on test rows."""
    runs = [run for setting in settings for run in setting.runs]
    if y is None:
        return measure_of(runs, direction="higher").reports  # whichever direction: nothing is chosen by it
    there = {name for run in runs for name in run.metrics}
    return f"test_{y}" if y not in there and f"test_{y}" in there else y


def draw_gain(found: Comparison, ax: Any = None) -> Any:
    """Matplotlib axes with the gain in bytes of every setting but the first against the target.

    Steps, since the gain changes at evaluations only; a band of one standard deviation over pairs of seeds. The axis
    goes from worse to better. Each curve ends at the best value that all its runs and those of the first setting
    reach. Settings that are not within the comparison's margin of the first have none; the title names them.

    Raises `UserError` if there is nothing to compare or matplotlib is missing.
    """
    require_matplotlib()
    given, ax = ax is not None, _new_axes(1)[0] if ax is None else ax
    _legend(ax, _draw_gain(ax, found), widen=not given)
    return ax


def draw_comparison(found: Comparison) -> Any:
    """A figure of the metric against bytes beside the gain against the metric, as far as there is one; where all runs
    have a clock, of both in simulated time too.

    Returns the axes of the first panel.
    """
    require_matplotlib()
    settings = [result.setting for result in found.results]
    axes = ["bytes", *(["simulated_seconds"] if found.timed else [])]
    gains = [cost for cost in list(GAINS)[: len(axes)] if gain_curves(found, 0, cost)]
    if len(axes) == 1 and not gains:
        return draw(settings, y=found.measure.chooses, smooth=found.smooth, target=found.target)
    panels = _new_axes(2, 2 if len(axes) + len(gains) > 2 else 1)
    entries = [
        _draw_metric(ax, settings, x, found.measure.chooses, found.smooth, None, found.target)
        for ax, x in zip(panels, axes, strict=False)
    ]
    for ax, cost in zip(panels[len(axes) :], gains, strict=False):
        _draw_gain(ax, found, cost)
    for ax in panels[len(axes) + len(gains) :]:
        ax.set_axis_off()
    _legend_below(panels[0].figure, entries[0])
    return panels[0]


def check_picture_name(path: str) -> str:
    """The kind of picture that a file's name asks for. Raises `UserError` for none of `KINDS`."""
    kind = path.lower().rpartition(".")[2]
    if kind not in KINDS:
        endings = ", ".join(f".{k}" for k in KINDS)
        raise UserError(f"cannot write {path!r}: pictures are PNG, SVG or PDF; give a name that ends in {endings}")
    return kind


def save_picture(ax: Any, path: str | os.PathLike, dpi: int = 200) -> None:
    """Writes the figure of `ax` as PNG, SVG or PDF by the name, whole or not at all.

    Text stays text in SVG and PDF, and the same figure gives the same bytes.
    """
    import matplotlib

    kind, image = check_picture_name(str(path)), io.BytesIO()
    dated: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fedjax8", "pdf.fonttype": 42}):
        ax.figure.savefig(image, format=kind, dpi=dpi, facecolor="white", metadata=dated)
    write_whole(path, image.getvalue())


def write_whole(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file by way of a neighbor that is then renamed, so that no reader sees a part of it.

    Raises `UserError` if that cannot be done.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        raise UserError(f"cannot write {path}: {error.strerror}; name another file") from error


def _new_axes(panels: int, rows: int = 1) -> Sequence[Any]:
    """The axes of so many panels beside each other, in so many rows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (6.0, 4.0) if panels == 1 else (5.2 * panels, 0.5 + 3.7 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure.subplots(rows, panels, squeeze=False).ravel().tolist()


def _draw_metric(
    ax: Any, settings: Sequence[Setting], x: str, y: str, smooth: int, logx: bool | None, target: float | None
) -> list[Entry]:
    if smooth < 1:
        raise UserError(f"smooth={smooth} evaluations; give 1 (no smoothing) or more")
    curves = [(i, s, curve(s, x, y, smooth)) for i, s in enumerate(settings)]
    drawn = [(i, s, c) for i, s, c in curves if c is not None]
    if not drawn:
        logged = sorted({name for s in settings for run in s.runs for name in run.metrics})
        raise UserError(f"nothing to draw: no setting logged {y!r} against {x}; logged are {', '.join(logged)}")
    log = _wants_log([c.x[-1] for _, _, c in drawn]) if logx is None and x in WIDE else bool(logx)
    entries = [(s.label, _draw_curve(ax, c, i, log)) for i, s, c in drawn]
    if target is not None:
        entries.append((f"target {readable(y, target)}", ax.axhline(target, **GUIDE)))
    if log:
        _log_axis(ax.xaxis)
    else:
        _few_ticks(ax.xaxis)
    if x == "bytes":
        from matplotlib.ticker import EngFormatter

        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
    if x == "simulated_seconds":
        of_durations(ax.xaxis, log, TICKS)
    _few_ticks(ax.yaxis)
    if is_percent(y):
        _in_percent(ax.yaxis)
    _style(ax, AXES[x], in_words(y))
    return entries


def _few_ticks(axis: Any) -> None:
    """A linear axis with at most `TICKS` labels, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10]))


def _in_percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=None))


def _draw_gain(ax: Any, found: Comparison, cost: str = "num_bytes") -> list[Entry]:
    reference = found.results[0]
    evaluated = [len(run.rounds) for r in found.results for run in r.pairing.setting]
    skip = min(UNRESOLVED, min(evaluated) // 10)
    drawn = [(i, found.results[i].setting.label, c) for i, c in gain_curves(found, skip, cost).items()]
    beyond = not_reached(found)
    measure = found.measure
    if not drawn and beyond:
        raise UserError(
            f"no gain to draw: {'; '.join(beyond)} not within {measure.margin_in_words(found.margin)} of the best "
            f"{measure.words} of {reference.setting.label!r}; give another --margin, or other runs"
        )
    if not drawn:
        raise UserError(f"no gain to draw: nothing to compare {reference.setting.label!r} with; give more runs")
    if beyond:
        names = "; ".join(name if len(name) <= NAME_LENGTH else f"{name[: NAME_LENGTH - 1]}…" for name in beyond)
        ax.set_title(f"not reached: {names}", fontsize=8.5, parse_math=False, wrap=True)
    entries = [(reference.setting.label, ax.axhline(1.0, color=COLORS[0], linewidth=1.6, zorder=2))]
    entries += [(label, _draw_curve(ax, c, i, log=False, steps=True)) for i, label, c in drawn]
    if found.target is not None:
        entries.append((f"target {measure.readable(found.target)}", ax.axvline(found.target, **GUIDE)))
    if measure.lower:
        ax.xaxis.set_inverted(True)
    _few_ticks(ax.xaxis)
    if measure.percent:
        _in_percent(ax.xaxis)
    if _wants_log([1.0, *(g for _, _, c in drawn for g in c.mean)]):
        _log_axis(ax.yaxis)
    ax.yaxis.set_major_formatter("{x:g}x")
    name = reference.setting.label
    _style(
        ax, measure.chosen_in_words, f"{GAINS[cost]} over {name if len(name) <= NAME_LENGTH else 'the first setting'}"
    )
    return entries


def _wants_log(values: Sequence[float]) -> bool:
    positive = [float(v) for v in values if v > 0]
    return bool(positive) and max(positive) / min(positive) >= LOG_FROM


def _draw_curve(ax: Any, found: Curve, index: int, log: bool, steps: bool = False) -> Any:
    """One line with its band; on a logarithmic axis without the points at zero."""
    shown = found.x > 0 if log else slice(None)
    x, mean, spread = found.x[shown], found.mean[shown], found.spread[shown]
    color = COLORS[index % len(COLORS)]
    style = DASHES[index // len(COLORS) % len(DASHES)]
    # A curve of a few points is hard to see as a line alone; many markers would hide it.
    marker = "o" if len(x) <= 12 else None
    draws = ("steps-pre", "pre") if steps else ("default", None)
    width = 1.2 if steps else 1.6
    (line,) = ax.plot(
        x, mean, style, color=color, linewidth=width, marker=marker, markersize=3.5, zorder=3, drawstyle=draws[0]
    )
    band = {"color": color, "alpha": 0.18, "linewidth": 0, "zorder": 2}
    ax.fill_between(x, mean - spread, mean + spread, step=draws[1], **band)
    return line


def _log_axis(axis: Any) -> None:
    """A logarithmic axis with at most `TICKS` labels."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter

    if axis.axis_name == "x":
        axis.axes.set_xscale("log")
    else:
        axis.axes.set_yscale("log")
    low, high = axis.get_view_interval()
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks) if len(ticks) > 2 else MaxNLocator(TICKS))
    axis.set_minor_formatter(NullFormatter())


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high` for the labels of a logarithmic axis, as many as `TICKS` allows.

    >>> log_ticks(1.5, 9.0), log_ticks(2.0, 1000.0), log_ticks(1.0, 1e9)
    ([2.0, 3.0, 5.0, 7.0], [3.0, 10.0, 30.0, 100.0, 300.0, 1000.0], [1.0, 100.0, 10000.0, 1000000.0, 100000000.0])
    """
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    found: list[float] = []
    for every, steps in [(1, (1, 2, 3, 5, 7)), (1, (1, 2, 5)), (1, (1, 3)), *((n, (1,)) for n in range(1, 400))]:
        found = [s * 10.0**power for power in range(first, last + 1, every) for s in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) <= TICKS:
            break
    return found


def _style(ax: Any, x: str, y: str) -> None:
    ax.set_xlabel(x, fontsize=10)
    ax.set_ylabel(y, fontsize=10, parse_math=False)
    ax.tick_params(labelsize=9, color=LINES, length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(LINES)
    ax.grid(True, color=GRID, linewidth=0.7)
    ax.set_axisbelow(True)


def _legend(ax: Any, entries: Sequence[Entry], widen: bool) -> None:
    """A legend where the curves leave room, or beside the axes if it is long; the figure may be widened for it."""
    if len(entries) <= LEGEND_INSIDE:
        _fill_legend(ax, entries, loc="best")
        return
    if widen:
        ax.figure.set_figwidth(ax.figure.get_figwidth() + 0.5 + 0.075 * max(len(label) for label, _ in entries))
    _fill_legend(ax, entries, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)


def _legend_below(figure: Any, entries: Sequence[Entry]) -> None:
    """One legend for all panels, in as many columns as the longest label leaves room for."""
    longest = max(len(label) for label, _ in entries)
    columns = max(1, min(len(entries), LEGEND_WIDTH // (longest + 8)))
    figure.set_figheight(figure.get_figheight() + 0.19 * (math.ceil(len(entries) / columns) - 1))
    _fill_legend(figure, entries, loc="outside lower center", ncols=columns)


def _fill_legend(place: Any, entries: Sequence[Entry], **options: Any) -> None:
    # Labels are put in afterwards: matplotlib drops those that begin with "_" and reads "$" as mathematics.
    legend = place.legend([handle for _, handle in entries], ["x"] * len(entries), fontsize=8.5, **options)
    legend.get_frame().set(edgecolor="none", alpha=0.8)
    for text, (label, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
