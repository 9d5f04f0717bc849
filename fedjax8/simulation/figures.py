"""Pictures of runs: accuracy, or any logged metric, against bytes, rounds or seconds.

Drawn on matplotlib's object interface: no window, no display and no global state, so it works in a notebook,
a batch job and a thread. matplotlib is an optional dependency: `pip install 'fedjax8[plot]'`.
"""

import contextlib
import html
import io
import math
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from fedjax8.errors import UserError
from fedjax8.simulation.comparison import Curve, curve
from fedjax8.simulation.runs import Setting, read_settings

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#333333")
"""Okabe and Ito's palette, told apart by color-blind readers, without its yellow: too pale for lines."""
DASHES = ("-", "--", "-.", ":")
"""Line styles of the first seven settings, the next seven and so on."""
LOG_FROM = 8.0
"""Ratio of the largest to the smallest total of bytes from which the byte axis is logarithmic by default."""
LEGEND_INSIDE = 7
"""Most lines of a legend inside the axes."""
AXES = {"bytes": "bytes sent, up and down", "rounds": "rounds", "seconds": "seconds"}


def require_matplotlib() -> None:
    """Raises `UserError` with the command that installs matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError("pictures need matplotlib: pip install 'fedjax8[plot]'") from error


def plot_runs(
    dirs: str | os.PathLike | Iterable[str | os.PathLike],
    x: str = "bytes",
    ax: Any = None,
    *,
    y: str = "test_accuracy",
    smooth: int = 1,
    logx: bool | None = None,
) -> Any:
    """Matplotlib axes with a curve per setting: its mean over seeds, and a band of one standard deviation.

    `dirs` are run folders, `x` is `bytes`, `rounds` or `seconds`, `y` a key of `metrics.jsonl`; `smooth`
    averages each value with those before it, `smooth` in all. `logx=None` takes a logarithmic axis for bytes
    where settings differ much in them. Without `ax` a figure is made:
    `plot_runs("runs/a").figure.savefig("a.png")`.

    Raises `UserError` for unreadable runs, an unknown `x`, a `y` that no run logged, or if matplotlib is
    missing.
    """
    paths = [dirs] if isinstance(dirs, str | os.PathLike) else list(dirs)
    settings, _ = read_settings(paths)
    return draw(settings, x, ax, y=y, smooth=smooth, logx=logx)


def draw(
    settings: Sequence[Setting],
    x: str = "bytes",
    ax: Any = None,
    *,
    y: str = "test_accuracy",
    smooth: int = 1,
    logx: bool | None = None,
    target: float | None = None,
) -> Any:
    """As `plot_runs`, from settings already read, with a line at `target` if given."""
    require_matplotlib()
    if smooth < 1:
        raise UserError(f"smooth={smooth} evaluations; give 1 (no smoothing) or more")
    drawn = [(i, s, curve(s, x, y, smooth)) for i, s in enumerate(settings)]
    drawn = [(i, s, c) for i, s, c in drawn if c is not None]
    if not drawn:
        logged = sorted({name for s in settings for run in s.runs for name in run.metrics})
        raise UserError(f"nothing to draw: no setting logged {y!r} against {x}; logged are {', '.join(logged)}")
    ax = _new_axes() if ax is None else ax
    log = _wants_log([c for _, _, c in drawn]) if logx is None and x == "bytes" else bool(logx)
    handles = [_draw_curve(ax, c, i, log) for i, _, c in drawn]
    labels = [s.label for _, s, _ in drawn]
    if target is not None:
        handles.append(ax.axhline(target, color="#888888", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1))
        labels.append(f"target {target:.4g}")
    _style(ax, x, y, log)
    _legend(ax, handles, labels)
    return ax


def check_png_name(path: str) -> None:
    """Raises `UserError` unless the name ends in `.png`."""
    if not path.lower().endswith(".png"):
        raise UserError(f"cannot write {path!r}: only PNG pictures are made; give a name that ends in .png")


def save_png(ax: Any, path: str | os.PathLike, dpi: int = 200) -> None:
    """Writes the figure of `ax` as a PNG, whole or not at all."""
    image = io.BytesIO()
    ax.figure.savefig(image, format="png", dpi=dpi, facecolor="white")
    write_whole(path, image.getvalue())


def inline_svg(ax: Any, name: str, title: str) -> str:
    """The figure of `ax` as an `<svg>` element for an HTML page: text stays text, nothing is fetched.

    `name` is put before every id, so that several pictures can stand on one page; `title` is read out by a
    screen reader.
    """
    import matplotlib

    image = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        ax.figure.savefig(image, format="svg", metadata={"Date": None})
    svg = image.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # Names of XML namespaces are not needed inside HTML; without them no address is left on the page.
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    return f'<svg role="img" aria-label="{html.escape(title)}"' + svg.removeprefix("<svg")


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


def _new_axes() -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    return figure.add_subplot()


def _wants_log(curves: Sequence[Curve]) -> bool:
    ends = [float(c.x[-1]) for c in curves if c.x[-1] > 0]
    return bool(ends) and max(ends) / min(ends) >= LOG_FROM


def _draw_curve(ax: Any, found: Curve, index: int, log: bool) -> Any:
    """One line with its band; on a logarithmic axis without the points at zero."""
    shown = found.x > 0 if log else slice(None)
    x, mean, spread = found.x[shown], found.mean[shown], found.spread[shown]
    color = COLORS[index % len(COLORS)]
    style = DASHES[index // len(COLORS) % len(DASHES)]
    # A curve of a few points is hard to see as a line alone; many markers would hide it.
    marker = "o" if len(x) <= 12 else None
    (line,) = ax.plot(x, mean, style, color=color, linewidth=1.6, marker=marker, markersize=3.5, zorder=3)
    ax.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.18, linewidth=0, zorder=2)
    return line


def _style(ax: Any, x: str, y: str, log: bool) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    if log:
        ax.set_xscale("log")
        low, high = ax.get_xlim()
        decades = math.log10(high / low)
        steps = (1.0, 2.0, 5.0) if decades < 1.7 else (1.0, 3.0) if decades < 3 else (1.0,)
        ax.xaxis.set_major_locator(LogLocator(subs=steps))
        ax.xaxis.set_minor_formatter(NullFormatter())
    if x == "bytes":
        ax.xaxis.set_major_formatter(EngFormatter(unit="B"))
    ax.set_xlabel(AXES[x], fontsize=10)
    ax.set_ylabel(y.replace("_", " "), fontsize=10, parse_math=False)
    ax.tick_params(labelsize=9, color="#888888", length=3)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color("#888888")
    ax.grid(True, color="#e4e4e4", linewidth=0.7)
    ax.set_axisbelow(True)


def _legend(ax: Any, handles: list[Any], labels: list[str]) -> None:
    """A legend where the curves leave room, or beside the axes if it is long."""
    beside: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0), "borderaxespad": 0.0}
    chosen = beside if len(labels) > LEGEND_INSIDE else {"loc": "best"}
    # Labels are put in afterwards: matplotlib drops those that begin with "_" and reads "$" as mathematics.
    legend = ax.legend(handles, ["x"] * len(labels), fontsize=8.5, **chosen)
    legend.get_frame().set(edgecolor="none", alpha=0.8)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(label)
